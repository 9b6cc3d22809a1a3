"""The table of a comparison: what is compared with what, and how it is written down."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.files import read_json, write_csv
from weakseg.pipeline.compare import plan
from weakseg.report.comparison.documents import latex
from weakseg.report.comparison.files import write_comparison
from weakseg.report.comparison.page import comparison_page
from weakseg.report.comparison.reading import Comparison, Measured, Score, Work, compared
from weakseg.report.comparison.records import as_dict, class_records, seed_records
from weakseg.report.comparison.tables import class_cells, pass_sentence, result_cells

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CLASSES = ("background", "kettle", "spoon")


def measured(run: str, part: str = "segmenter", split: str = "val", number: int = 0, **seeds: float) -> Measured:
    """Of every class, the IoU is its number of points better than the mean; the last class is never defined."""
    scores = {int(name.removeprefix("s")): Score(iou, [iou, iou + 0.01, None]) for name, iou in seeds.items()}
    return Measured(run, part, number, split, f"row of {run}", scores)


def comparison(*results: Measured, work: Sequence[Work] = ()) -> Comparison:
    runs = list(dict.fromkeys(result.run for result in results))
    return Comparison(runs, [0, 1, 2], "photos", CLASSES, compared(results), work, {})


def table(*results: Measured) -> list[list[str]]:
    return result_cells(comparison(*results))[1]


A, B = measured("a", s0=0.10, s1=0.20, s2=0.30), measured("b", s0=0.11, s1=0.22, s2=0.36)
"""b is better by 1, 2 and 6 points: 3.0 on average, deviation √7 = 2.6, interval 3 ± 4.303 · √(7 / 3)."""


def test_by_hand() -> None:
    assert table(A, B) == [
        ["a", "segmenter, val: row of a", "20.0", "reference", "", "10.0", "", "3"],
        ["b", "segmenter, val: row of b", "23.0", "+3.0", "−3.6 … +9.6", "12.5", "2.6", "3"],
    ]


def test_only_seeds_that_both_have_are_paired() -> None:
    (_, row) = table(measured("a", s0=0.5, s1=0.6), measured("b", s1=0.5, s2=0.1))
    assert (row[3], row[4], row[6], row[7]) == ("−10.0", "–", "–", "2, 1 paired")
    (_, row) = table(measured("a", s0=0.5), measured("b", s1=0.5))
    assert row[3:] == ["–", "–", "–", "–", "1"]


def test_the_reference_is_the_first_that_has_such_a_row() -> None:
    results = (
        measured("a", s0=0.1),
        measured("b", "refined maps", "score", s0=0.3),
        measured("c", "refined maps", "score", s0=0.5),
        measured("c", "refined maps", "score", number=1, s0=0.6),
        measured("c", split="score", s0=0.7),
        measured("b", s0=0.2),
    )
    assert [(row[0], row[1], row[3]) for row in table(*results)] == [
        ("b", "refined maps, score: row of b", "reference"),
        ("c", "refined maps, score: row of c", "+20.0"),
        ("c", "refined maps, score: row of c", "reference"),
        ("c", "segmenter, score: row of c", "reference"),
        ("a", "segmenter, val: row of a", "reference"),
        ("b", "segmenter, val: row of b", "+10.0"),
    ]


def test_classes_are_compared_too() -> None:
    (of_masks, masks), (of_segmenter, segmenter) = class_cells(comparison(measured("a", "final masks", s0=0.4), A, B))
    assert (of_masks, of_segmenter) == ("final masks, val", "segmenter, val")
    assert masks == (["class", "a"], [["background", "40.0"], ["kettle", "41.0"], ["spoon", "–"]])
    header, cells = segmenter
    assert header == ["class", "a", "b", "difference"]
    assert cells == [
        ["background", "20.0", "23.0", "+3.0"],
        ["kettle", "21.0", "24.0", "+3.0"],
        ["spoon", "–", "–", "–"],
    ]


def test_of_a_class_only_the_seeds_that_show_it_count() -> None:
    seen = Measured(
        "b", "segmenter", 0, "val", "b", {0: Score(0.5, [0.5, None, None]), 1: Score(0.5, [0.5, 0.3, None])}
    )
    ((_, (_, cells)),) = class_cells(comparison(A, seen))
    assert cells[1] == ["kettle", "21.0", "30.0", "+9.0"]


def test_tables_for_programs_hold_every_number_as_it_was_measured(tmp_path: Path) -> None:
    found = comparison(A, measured("b", s1=1 / 3, s3=0.1 + 0.2))
    write_csv(tmp_path / "seeds.csv", *seed_records(found))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "seeds.csv").read_text())))
    assert [(row["recipe"], row["seed"], row["reference"]) for row in rows] == [
        ("a", "0", ""), ("a", "1", ""), ("a", "2", ""), ("b", "1", "a"), ("b", "3", "a"),
    ]  # fmt: skip
    assert [float(row["mean_iou"]) for row in rows] == [0.1, 0.2, 0.3, 1 / 3, 0.1 + 0.2]
    assert [row["difference"] for row in rows] == ["", "", "", str(1 / 3 - 0.2), ""], "a has no seed 3"
    write_csv(tmp_path / "classes.csv", *class_records(found))
    classes = list(csv.DictReader(io.StringIO((tmp_path / "classes.csv").read_text())))
    assert [row["class"] for row in classes] == [*CLASSES] * 5
    assert [row["iou"] for row in classes[:3]] == [str(0.1), str(0.1 + 0.01), ""]
    assert as_dict(found)["rows"][1]["class_iou"] == {
        "background": {"1": 1 / 3, "3": 0.1 + 0.2},
        "kettle": {"1": 1 / 3 + 0.01, "3": 0.1 + 0.2 + 0.01},
        "spoon": {"1": None, "3": None},
    }


def cells_of(tabular: str) -> list[list[str]]:
    """The cells that LaTeX sees, as text: what commands stand for, without groups."""
    begin, *body, end = tabular.splitlines()
    assert (begin, end) == ("\\begin{tabular}{llrrr}", "\\end{tabular}")
    lines = [line for line in body if line != "\\hline"]
    assert all(line.endswith(" \\\\") for line in lines)
    commands = {
        "\\textbackslash{}": "\\",
        "\\textasciicircum{}": "^",
        "\\textasciitilde{}": "~",
        "$\\pm$": "±",
        "$-$": "−",
    }

    def text(match: re.Match[str]) -> str:
        found = match[0]
        return commands.get(found) or (found[1] if len(found) in (2, 3) else found)

    token = r"\\text\w+\{\}|\$\\pm\$|\\[{}$&#_%]|\{[][*]\}|\$[-<>|]\$"
    for line in lines:
        assert not re.search(r"[\\{}$&#_%^~<>|*\[\]]", re.sub(token, "", line[:-3]).replace(" & ", "")), line
    return [[re.sub(token, text, cell) for cell in line[:-3].split(" & ")] for line in lines]


def test_latex_by_hand() -> None:
    assert cells_of(latex(comparison(A, B))) == [
        ["recipe", "what", "mIoU (%)", "difference", "seeds"],
        ["a", "segmenter, val: row of a", "20.0 ± 10.0", "", "3"],
        ["b", "segmenter, val: row of b", "23.0 ± 12.5", "+3.0 ± 2.6", "3"],
    ]


@given(st.text("\\{}$&#_%^~<>|*[]-+ab \n", min_size=1).filter(lambda name: " ".join(name.split())))
def test_no_name_breaks_out_of_latex(name: str) -> None:
    (_, row) = cells_of(latex(comparison(measured(name, s0=0.5))))
    assert row[0] == " ".join(name.split())
    assert row[2:] == ["50.0", "", "1"]


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
    assert pass_sentence(comparison(work=work)) == sentence


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
    assert len(cells_of((tmp_path / "compare.tex").read_text(encoding="utf-8"))) == 1
    for name in ("compare.csv", "compare-classes.csv"):
        assert len((tmp_path / name).read_text(encoding="utf-8").splitlines()) == 1


def test_a_phone_shows_the_mean_iou_without_scrolling(browser: Browser, tmp_path: Path) -> None:
    cells = plan(["toy-cam", "seam"], tmp_path, [0], ["none", "affinitynet"])
    results = [
        measured(cell.recipe.name, part, split, s0=0.5, s1=0.6)
        for cell in cells
        for part, split in (("activation maps", "score"), ("unrefined masks", "score"), ("segmenter", "val"))
    ]
    (tmp_path / "compare.html").write_text(comparison_page(comparison(*results), tmp_path, cells), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    tab.goto((tmp_path / "compare.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for scores in tab.locator("#result ~ .scroll table, details[open] table").all():
        box = scores.locator("td.bar").first.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 390
    assert tab.locator("#result ~ .scroll td.bar").count() == len(results)
    tab.close()
