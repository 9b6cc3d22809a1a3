"""Damaged files of every kind: always a message, never another exception. `fuzzing.py` runs as many as one likes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuzzing import TARGETS, Target, crashes, make_arrays

INPUTS = 40


@pytest.mark.parametrize("name", TARGETS)
def test_the_sound_example_is_taken(name: str, tmp_path: Path) -> None:
    TARGETS[name].make(tmp_path)
    TARGETS[name].read(tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutation_ends_in_an_exception_that_is_not_ours(name: str) -> None:
    assert [crash for crash in crashes(name, range(INPUTS)) if crash] == []


def test_a_reader_that_is_not_careful_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    careless = Target(make_arrays, lambda root: json.loads((root / "x.json").read_text())["b"]["c"], ("x.json",))
    monkeypatch.setitem(TARGETS, "careless", careless)
    found = [crash for crash in crashes("careless", range(INPUTS)) if crash]
    assert any("KeyError" in crash.error for crash in found)
    assert found == [crash for crash in crashes("careless", range(INPUTS)) if crash], "a seed makes its input again"
