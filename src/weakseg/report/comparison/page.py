"""The page of a comparison, which links to the reports of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from weakseg.pipeline.compare import Cell
from weakseg.report.comparison.reading import Comparison
from weakseg.report.comparison.tables import (
    EXPLANATION,
    PARTS_EXPLANATION,
    WORK_EXPLANATION,
    class_cells,
    heading,
    pass_sentence,
    result_cells,
    seed_cells,
    work_cells,
)
from weakseg.report.markup import Markup, element, join, note, page, table
from weakseg.report.run import REPORT_NAME
from weakseg.report.tables import ABSENT


def comparison_page(comparison: Comparison, out: Path, cells: Sequence[Cell]) -> Markup:
    """The page, for the folder `out` of a comparison whose runs are `cells`."""
    sections = {
        "Result": _result(comparison),
        "Seeds": iter([table(*seed_cells(comparison), "Mean IoU in percent, seed by seed", texts=2)]),
        "Classes": _classes(comparison),
        "Training": _work(comparison),
        "Runs": _runs(comparison, out, cells),
    }
    return page(heading(comparison), _introduction(comparison), sections)


def _introduction(comparison: Comparison) -> Iterator[Markup]:
    yield element("p", "Comparison", class_="kicker")
    yield element("h1", ", ".join(comparison.runs))
    yield element("p", f"Data: {comparison.data or ABSENT}", class_="about")
    count = len(comparison.runs) * len(comparison.seeds)
    done = count - len(comparison.unfinished)
    yield element("p", f"{done} of {count} runs are finished, {len(comparison.seeds)} seeds each.", class_="summary")
    for title, reason in comparison.unfinished.items():
        yield note(f"Missing: {title}: {reason}")


def _result(comparison: Comparison) -> Iterator[Markup]:
    if not comparison.rows:
        yield note("No run is finished yet.")
        return
    yield table(*result_cells(comparison), "Mean IoU in percent, differences in percentage points", texts=2)
    yield element("p", EXPLANATION, class_="explanation")
    yield element("p", PARTS_EXPLANATION, class_="explanation")


def _classes(comparison: Comparison) -> Iterator[Markup]:
    """The table of what comes last in the recipes is open, the others are folded."""
    tables = dict(class_cells(comparison))
    if not tables:
        yield note("There are no scores of classes.")
    for place, (what, (header, cells)) in enumerate(reversed(tables.items())):
        caption = "IoU of every class in percent, means over the seeds; differences in percentage points"
        attributes = {} if place else {"open": "open"}
        yield element("details", element("summary", what), table(header, cells, f"{what}: {caption}"), **attributes)


def _work(comparison: Comparison) -> Iterator[Markup]:
    yield element("p", pass_sentence(comparison))
    yield table(*work_cells(comparison), "Time and image passes of every stage, means over the seeds", texts=3)
    yield element("p", WORK_EXPLANATION, class_="explanation")


def _runs(comparison: Comparison, out: Path, cells: Sequence[Cell]) -> Iterator[Markup]:
    for run in comparison.runs:
        links = [
            element("a", f"seed {cell.recipe.seed}", href=quote(str((cell.folder / REPORT_NAME).relative_to(out))))
            for cell in cells
            if cell.recipe.name == run and (cell.folder / REPORT_NAME).is_file()
        ]
        about = next(cell.recipe.about for cell in cells if cell.recipe.name == run)
        yield element("h3", run)
        yield element("p", about, class_="explanation")
        yield element("p", join([f for link in links for f in (link, " ")]) if links else ABSENT)
