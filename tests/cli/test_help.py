"""What the command line says of itself."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from weakseg import __version__
from weakseg.cli import WAITING, app
from weakseg.pipeline.recipe import load_recipe, shipped_recipes

HEAVY = ("torch", "numba", "numpy", "PIL", "pydantic", "scipy", "skimage", "matplotlib", "lightning_fabric")
ROOT: Any = typer.main.get_command(app)


def commands(group: Any = ROOT, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All commands and groups of commands by what is typed after `weakseg`."""
    found = {path: group}
    for name, command in getattr(group, "commands", {}).items():
        found |= commands(command, (*path, name))
    return found


def examples(help: str) -> list[str]:
    """The command lines of a help text."""
    below = help.partition("Examples:")[2].partition("\n\n")[0]
    return [line.strip() for line in below.splitlines() if line.strip()]


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_examples(weakseg: Any, path: tuple[str, ...], option: str) -> None:
    answer = weakseg(*path, option)
    assert (answer.status, answer.err) == (0, "")
    lines = examples(answer.out)
    assert lines
    assert all(re.search(rf"\bweakseg {' '.join(path)}", line) for line in lines), lines


@pytest.mark.parametrize("line", sorted({line for c in commands().values() for line in examples(c.help)}))
def test_every_example_can_be_typed(line: str) -> None:
    words = shlex.split(line.partition("weakseg ")[2].partition(" > ")[0])
    path = max((path for path in commands() if tuple(words[: len(path)]) == path), key=len)
    context = commands()[path].make_context("weakseg", words[len(path) :])  # raises for whatever it does not know
    assert not context.args


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "")],
)
def test_threads_wait_without_working_unless_the_user_says_otherwise(chosen: dict[str, str], expected: str) -> None:
    script = """
import os, sys
from weakseg.cli import main
sys.argv = ["weakseg", "--version"]
try:
    main()
except SystemExit:
    print(os.environ.get("OMP_WAIT_POLICY", ""), "torch" in sys.modules)
"""
    inherited = {key: value for key, value in os.environ.items() if key not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**inherited, **chosen}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{expected} False"


def test_help_loads_nothing_heavy() -> None:
    script = f"""
import sys
from weakseg.cli import main
sys.argv = ["weakseg", "--help"]
try:
    main()
except SystemExit:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.strip() == "[]"


def test_the_version(weakseg: Any) -> None:
    answer = weakseg("--version")
    assert (answer.status, answer.out) == (0, f"{__version__}\n")


def test_nothing_typed_shows_the_help(weakseg: Any) -> None:
    answer = weakseg()
    assert "weakseg data make-toy toy" in answer.out + answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["data", "chekc"], "No such command 'chekc'"),
        (["run", "toy", "--data", "x"], "Missing option '--out'"),
        (["run"], "Missing argument"),
        (["recipes", "--sett"], "No such option"),
    ],
)
def test_a_mistyped_command_is_told(weakseg: Any, words: list[str], message: str) -> None:
    answer = weakseg(*words)
    assert answer.status == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_the_list_of_recipes(weakseg: Any) -> None:
    lines = weakseg("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(len(line.split()) > 3 for line in lines), "each says what it is about"


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_a_printed_recipe_is_one_s_own_to_change(weakseg: Any, tmp_path: Path, name: str) -> None:
    text = weakseg("recipes", name).out
    assert yaml.safe_load(text)["name"] == name
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe(name)


def test_an_unknown_recipe_names_the_nearest(weakseg: Any) -> None:
    answer = weakseg("recipes", "camm")
    assert answer.status == 1
    assert answer.err.startswith('Error: There is no recipe "camm". Did you mean "cam"?')


@pytest.mark.parametrize("words", [("run", "camm"), ("compare", "cam", "camm")], ids=" ".join)
def test_a_misspelt_recipe_is_answered_without_networks(words: tuple[str, ...], tmp_path: Path) -> None:
    code = "import sys; from weakseg.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)\n"
    command = [sys.executable, "-c", code, *words, "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (1, "False\n")
    assert '"cam"' in answer.stderr
