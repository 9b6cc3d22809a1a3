"""A comparison over several data sets: how recipes do on each, on average, and where each does worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from weakseg.files import write_csv, write_json, write_text
from weakseg.report.comparison.documents import markdown_table
from weakseg.report.comparison.reading import PARTS, Comparison, Measured
from weakseg.report.comparison.tables import points
from weakseg.report.markup import Markup, element, join, page, table
from weakseg.report.tables import ABSENT, Cells, percent, text_table

EXPLANATION = (
    "mIoU in percent: of each data set the mean over its seeds, and the mean over the data sets. Differences are in "
    "percentage points to the first recipe with such a row, on the data sets that both have; worst: the data set on "
    "which the recipe differs for the worse, or gains least. Data sets count alike, whatever their size."
)


@dataclass(frozen=True)
class Across:
    """One recipe's result of one kind (`part`, `number`, `split`) on several data sets: name → mean over the seeds, and
    name → difference to the first recipe."""

    run: str
    part: str
    number: int
    split: str
    scores: Mapping[str, float]
    differences: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over the data sets."""
        return sum(self.scores.values()) / len(self.scores)

    @property
    def mean_difference(self) -> float | None:
        """Over the data sets; None for the first recipe."""
        return sum(self.differences.values()) / len(self.differences) if self.differences else None

    @property
    def worst(self) -> tuple[str, float] | None:
        """The data set with the lowest difference, and that difference; None for the first recipe."""
        return min(self.differences.items(), key=lambda item: item[1]) if self.differences else None


def across(comparisons: Mapping[str, Comparison]) -> list[Across]:
    """The rows of the table, those that are compared below each other."""
    found: dict[tuple[int, int, str], dict[str, dict[str, Measured]]] = {}
    for data, comparison in comparisons.items():
        for row in comparison.rows:
            found.setdefault(row.measured.group, {}).setdefault(row.measured.run, {})[data] = row.measured
    rows = []
    for (part, number, split), by_run in sorted(found.items()):
        first = next(iter(by_run))
        for run, by_data in by_run.items():
            scores = {data: _mean(measured) for data, measured in by_data.items()}
            reference = {data: _mean(measured) for data, measured in by_run[first].items()}
            shared = [data for data in scores if data in reference and run != first]
            differences = {data: scores[data] - reference[data] for data in shared}
            rows.append(Across(run, PARTS[part], number, split, scores, differences))
    return rows


def write_across(out: Path, comparisons: Mapping[str, Comparison]) -> list[Across]:
    """Write `compare.json`, `.csv`, `.md` and `.html` into the folder that holds a comparison for each data set."""
    rows, names = across(comparisons), list(comparisons)
    write_json(out / "compare.json", {"data": names, "rows": [_as_dict(row) for row in rows]})
    write_csv(out / "compare.csv", *_records(rows))
    tables = "\n\n".join([markdown_table(*cells(rows, names), texts=2), EXPLANATION])
    write_text(out / "compare.md", f"# Comparison over {len(names)} data sets\n\n{tables}\n")
    write_text(out / "compare.html", _page(rows, names))
    return rows


def cells(rows: list[Across], names: list[str]) -> Cells:
    """Header and cells of the table; two columns of words come first."""
    header = ["recipe", "what", "mIoU %", "difference", "worst", *names]
    return header, [_cells(row, names) for row in rows]


def across_text(rows: list[Across], names: list[str]) -> str:
    """The table in plain text for the terminal."""
    return text_table(*cells(rows, names), texts=2) if rows else "No run is finished yet."


def _mean(measured: Measured) -> float:
    values = measured.mean_iou().values()
    return sum(values) / len(values)


def _cells(row: Across, names: list[str]) -> list[str]:
    difference, worst = "reference", ""
    if row.mean_difference is not None and row.worst is not None:
        difference, worst = points(row.mean_difference), f"{row.worst[0]} {points(row.worst[1])}"
    number = f" ({row.number + 1})" if row.number else ""
    of_data = [percent(row.scores[name]) if name in row.scores else ABSENT for name in names]
    return [row.run, f"{row.part}{number}, {row.split}", percent(row.mean), difference, worst, *of_data]


def _as_dict(row: Across) -> dict[str, Any]:
    worst = None if row.worst is None else {"data": row.worst[0], "difference": row.worst[1]}
    return {
        "run": row.run,
        "what": row.part,
        "number": row.number,
        "split": row.split,
        "mean_iou": row.mean,
        "by_data": dict(row.scores),
        "difference": row.mean_difference,
        "difference_by_data": dict(row.differences),
        "worst": worst,
    }


def _records(rows: list[Across]) -> Cells:
    """A line for each recipe, result and data set; scores are fractions of 1."""
    header = ["recipe", "what", "number", "split", "data", "mean_iou", "difference"]
    return header, [
        [row.run, row.part, str(row.number), row.split, data, f"{score:.6f}",
         f"{row.differences[data]:.6f}" if data in row.differences else ""]
        for row in rows
        for data, score in row.scores.items()
    ]  # fmt: skip


def _page(rows: list[Across], names: list[str]) -> Markup:
    links = [element("a", name, href=f"{quote(name)}/compare.html") for name in names]
    introduction = [
        element("p", "Comparison", class_="kicker"),
        element("h1", f"{len(names)} data sets"),
        element("p", join([part for link in links for part in (link, " ")])),
    ]
    result = [
        table(*cells(rows, names), "Mean IoU in percent, differences in percentage points", texts=2),
        element("p", EXPLANATION, class_="explanation"),
    ]
    return page("Comparison over data sets", introduction, {"Result": result})
