"""weakseg compare over several data sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from commands import Command
from tiny import TINY, set_options, write_tiny_voc

SHORT = (*TINY, "cam.train.epochs=1", "segment.train.epochs=1", "scores.segmenters={}")


def test_a_table_over_data_sets_says_where_a_recipe_does_worst(tmp_path: Path, weakseg: Command) -> None:
    data = [write_tiny_voc(tmp_path / "one"), write_tiny_voc(tmp_path / "the other", train=6)]
    (tmp_path / "none.yaml").write_text("extends: toy-cam\nname: none\nabout: no CRF\nstages: {masks: {crf: null}}\n")
    answer = weakseg(
        "compare", "toy-cam", tmp_path / "none.yaml", *(word for path in data for word in ("--data", path)),
        "--out", tmp_path / "out", "--seeds", "0,1", *set_options(*SHORT, "segment=null"),
    )  # fmt: skip
    assert answer.status == 0, answer.err
    parts = {name: json.loads((tmp_path / "out" / name / "compare.json").read_text()) for name in ("one", "the other")}
    whole = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert whole["data"] == ["one", "the other"]
    rows = {(row["run"], row["what"]): row for row in whole["rows"]}
    first, second = rows["toy-cam", "final masks"], rows["none", "final masks"]
    for name, part in parts.items():
        (own,) = (row for row in part["rows"] if (row["run"], row["what"]) == ("none", "final masks"))
        assert second["by_data"][name] == pytest.approx(own["mean"])
        assert second["difference_by_data"][name] == pytest.approx(own["difference"]["mean"])
    differences = second["difference_by_data"]
    assert second["difference"] == pytest.approx(sum(differences.values()) / 2)
    assert second["worst"]["data"] == min(differences, key=lambda name: differences[name])
    assert first["difference"] is None
    with (tmp_path / "out" / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(whole["rows"])
    for name in ("compare.html", "compare.md"):
        assert "the other" in (tmp_path / "out" / name).read_text(encoding="utf-8")


def test_data_sets_of_one_name_are_refused(tmp_path: Path, weakseg: Command) -> None:
    for folder in ("a", "b"):
        write_tiny_voc(tmp_path / folder / "photos")
    answer = weakseg(
        "compare", "toy-cam", "--data", tmp_path / "a" / "photos", "--data", tmp_path / "b" / "photos",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert answer.status == 1
    assert "same name" in answer.err
    assert not (tmp_path / "out").exists()
