"""Recipes explain themselves: comments, and a schema that knows what the loader knows."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import weakseg
from commands import Command
from weakseg.pipeline.describe import WIDTH, explained, recipe_schema
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.recipe_files import shipped_recipes
from weakseg.settings import Settings


def settings_classes() -> list[type[Settings]]:
    """Every group of settings in the package."""
    for module in pkgutil.walk_packages(weakseg.__path__, "weakseg."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(cls: type[Settings]) -> Iterator[type[Settings]]:
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    return [cls for cls in dict.fromkeys(below(Settings)) if cls.__module__.startswith("weakseg.")]


def test_every_setting_has_a_description() -> None:
    found = settings_classes()
    assert len(found) > 20
    missing = [
        f"{cls.__module__}.{cls.__qualname__}.{key}"
        for cls in found
        for key, field in cls.model_fields.items()
        if not field.description and key != "kind"
    ]
    assert missing == []


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_an_explained_recipe_reads_back_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    text = explained(recipe)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(str(tmp_path / "mine.yaml")) == recipe
    comments = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    assert max(map(len, comments), default=0) <= WIDTH
    for words in ("updates of the weights", "passes over the training images"):
        assert text.count(words) == 1, "told where it comes first, and not again"


def test_a_printed_recipe_is_explained(weakseg: Command) -> None:
    answer = weakseg("recipes", "cam")
    assert answer.status == 0
    line = next(line for line in answer.out.splitlines() if line.strip().startswith("momentum:"))
    assert "#" in line
    assert "< 1" in line


@pytest.fixture(scope="module")
def schema() -> Any:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_the_schema_knows_every_shipped_recipe(name: str, schema: Any) -> None:
    values = yaml.safe_load((files("weakseg") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert [error.message for error in schema.iter_errors(values)] == []
    whole = yaml.safe_load(load_recipe(name).as_yaml())
    assert [error.message for error in schema.iter_errors(whole)] == []


@pytest.mark.parametrize(
    "values",
    [
        {"stage": {}},
        {"seed": "many"},
        {"data": {"training": "train"}},
        {"stages": {"cam": {"kind": "localize"}}},
        {"stages": {"cam": {"kind": "localise", "train": {"epoch": 3}}}},
        {"stages": {"cam": {"kind": "localise", "train": {"momentum": 1.5}}}},
        {"stages": {"cam": {"epochs": 3}}},
        {"stages": {"cam": {"kind": "localise", "method": "cam", "model": {"form": "seam"}}}},
        {"stages": {"cam": {"kind": "localise", "method": "cam", "model": {"bakbone": {}}}}},
        {"stages": {"walk": {"kind": "walk", "method": "irnet", "options": {"beta": -1}}}},
        {"rounds": {"count": 1, "stage": ["cam"]}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(values: Any, schema: Any) -> None:
    assert not schema.is_valid({"extends": "cam", "name": "mine", "about": "mine", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"stages": {"segment": None}},
        {"stages": {"scores": {"kind": "evaluate", "curves": {"CAM": None}}}},
        {"stages": {"second": {"like": "cam", "train": {"epochs": 2}}}},
        {"stages": {"cam": {"augment": None}}},
        {"stages": {"cam": {"kind": "localise", "method": "mine/method.py", "model": {"anything": 1}}}},
        {"rounds": {"count": 2, "stages": ["cam"], "changes": {"cam": {"init_from": "previous/cam"}}}},
    ],
)
def test_the_schema_allows_what_the_loader_allows(values: Any, schema: Any) -> None:
    found = schema.iter_errors({"extends": "cam", "name": "mine", "about": "mine", **values})
    assert [error.message for error in found] == []


def test_the_schema_is_printed(weakseg: Command) -> None:
    answer = weakseg("recipes", "--schema")
    assert json.loads(answer.out) == recipe_schema()
