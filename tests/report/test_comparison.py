"""The table of a comparison: what is compared with what, and how it is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from weakseg.files import read_json
from weakseg.pipeline.compare import plan
from weakseg.report.comparison import (
    Comparison,
    Measured,
    Work,
    compared,
    pass_sentence,
    result_cells,
    write_comparison,
)


def measured(run: str, part: str = "segmenter", split: str = "val", number: int = 0, **seeds: float) -> Measured:
    scores = {int(name.removeprefix("s")): score for name, score in seeds.items()}
    return Measured(run, part, number, split, f"row of {run}", scores)


def table(*results: Measured) -> list[list[str]]:
    return result_cells(Comparison(["a", "b"], [0, 1, 2], "photos", compared(results), [], {}))[1]


def test_by_hand() -> None:
    """b is better by 1, 2 and 6 points: 3.0 on average, deviation √7 = 2.6, interval 3 ± 4.303 · √(7 / 3)."""
    first = measured("a", s0=0.10, s1=0.20, s2=0.30)
    second = measured("b", s0=0.11, s1=0.22, s2=0.36)
    assert table(first, second) == [
        ["segmenter", "val", "a", "row of a", "20.0", "10.0", "reference", "", "", "3"],
        ["segmenter", "val", "b", "row of b", "23.0", "12.5", "+3.0", "2.6", "−3.6 … +9.6", "3"],
    ]


def test_only_seeds_that_both_have_are_paired() -> None:
    (_, row) = table(measured("a", s0=0.5, s1=0.6), measured("b", s1=0.5, s2=0.1))
    assert row[6:] == ["−10.0", "–", "–", "2, 1 paired"]
    (_, row) = table(measured("a", s0=0.5), measured("b", s1=0.5))
    assert row[6:] == ["–", "–", "–", "1"]


def test_the_reference_is_the_first_that_has_such_a_row() -> None:
    results = (
        measured("a", s0=0.1),
        measured("b", "refined maps", "score", s0=0.3),
        measured("c", "refined maps", "score", s0=0.5),
        measured("c", "refined maps", "score", number=1, s0=0.6),
        measured("c", split="score", s0=0.7),
        measured("b", s0=0.2),
    )
    assert [(row[0], row[1], row[2], row[6]) for row in table(*results)] == [
        ("refined maps", "score", "b", "reference"),
        ("refined maps", "score", "c", "+20.0"),
        ("refined maps", "score", "c", "reference"),
        ("segmenter", "score", "c", "reference"),
        ("segmenter", "val", "a", "reference"),
        ("segmenter", "val", "b", "+10.0"),
    ]


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((64, 64), "Image passes of training: localise: 64 in every recipe that has it."),
        ((64, 96), "Image passes of training: localise: not equal (a 64, b 96)."),
    ],
)
def test_whether_the_trainings_are_equally_long_is_said(counts: tuple[int, int], sentence: str) -> None:
    work = [
        Work(run, "cam", "localise", {0: 1.0}, {0: count}, {0: 2.0}, [])
        for run, count in zip("ab", counts, strict=True)
    ]
    assert pass_sentence(Comparison(["a", "b"], [0], "photos", [], work, {})) == sentence


def test_nothing_is_finished_yet(tmp_path: Path) -> None:
    cells = plan(["toy-cam"], tmp_path, [0, 1])
    write_comparison(tmp_path, cells, {cells[0].folder: "no <b>weights</b> | gone"})
    found = read_json(tmp_path / "compare.json")
    assert found["rows"] == []
    assert found["unfinished"] == {"toy-cam, seed 0": "no <b>weights</b> | gone", "toy-cam, seed 1": "not finished yet"}
    html = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "No run is finished yet." in html
    assert "no &lt;b&gt;weights&lt;/b&gt; | gone" in html
    assert r"no \<b>weights\</b> \| gone" in (tmp_path / "compare.md").read_text(encoding="utf-8")
