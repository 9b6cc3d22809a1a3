"""Every command and every recipe that the documentation shows can be typed: parsed here, not carried out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from weakseg.cli import app
from weakseg.pipeline.describe import recipe_schema
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.recipe_files import shipped_recipes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^(?: {4,}|\t)(?:\$ )?(?:\w+=\S+ )*(?:torchrun .*-m )?weakseg (.+)$", re.MULTILINE)
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def found(pattern: re.Pattern[str]) -> list[Any]:
    """What the pages show, each with the name of its page; lines that end in a backslash go on."""
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, text in enumerate(pattern.findall(page.read_text().replace("\\\n", " ")))
    ]


@pytest.mark.parametrize("line", found(COMMAND))
def test_every_command_can_be_typed(line: str) -> None:
    words = shlex.split(re.split(r" (?:2?>|\||&&) ", line)[0], comments=True)
    name, command = "weakseg", typer.main.get_command(app)
    while words[0] in (inner := getattr(command, "commands", {})):
        name, command, words = words[0], inner[words[0]], words[1:]
    assert not command.make_context(name, words).args  # which raises for whatever it does not know


@pytest.mark.parametrize("text", found(YAML))
def test_every_recipe_is_one(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    whole = values if "name" in values else {"stages": values}
    jsonschema.Draft202012Validator(recipe_schema()).validate(whole)
    if whole.get("extends") in shipped_recipes():
        (tmp_path / "mine.yaml").write_text(text)
        assert load_recipe(str(tmp_path / "mine.yaml")).name == values["name"]


def test_commands_and_recipes_are_found() -> None:
    assert len(found(COMMAND)) > 20
    assert len(found(YAML)) > 2
