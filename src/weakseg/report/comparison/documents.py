"""A comparison to be pasted into other documents: Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from weakseg.ops.paired import Spread
from weakseg.report.comparison.reading import Comparison, Row
from weakseg.report.comparison.tables import (
    EXPLANATION,
    PARTS_EXPLANATION,
    WORK_EXPLANATION,
    heading,
    named,
    pass_sentence,
    points,
    result_cells,
    seed_cells,
    work_cells,
)
from weakseg.report.tables import ABSENT, percent

LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    # These would be an argument of the line break before them.
    **{character: f"{{{character}}}" for character in "[]*"},
    **{character: f"${character}$" for character in "<>|"},
    "\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}",
    "±": "$\\pm$", "−": "$-$", "–": "--", "…": "\\ldots{}",
}  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """All tables but those of the classes."""
    missing = [f"- {title}: {reason}" for title, reason in comparison.unfinished.items()]
    parts = [
        f"# {heading(comparison)}",
        f"Data: {_escaped(comparison.data)}. Seeds: {', '.join(map(str, comparison.seeds))}.",
        *(["Missing:\n\n" + "\n".join(map(_escaped, missing))] if missing else []),
        markdown_table(*result_cells(comparison), texts=2),
        EXPLANATION,
        PARTS_EXPLANATION,
        "## Seed by seed, mIoU %",
        markdown_table(*seed_cells(comparison), texts=2),
        "## Time and training",
        markdown_table(*work_cells(comparison), texts=3),
        pass_sentence(comparison),
        WORK_EXPLANATION,
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table whose first `texts` columns hold words."""
    line = ["---" if place < texts else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in cells)} |" for cells in (header, line, *rows))


def _escaped(text: str) -> str:
    for special in "\\|<`*_[":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def latex(comparison: Comparison) -> str:
    """A `tabular` that needs no package: mean ± standard deviation in percent, of differences in percentage points."""
    header = ["recipe", "what", "mIoU (%)", "difference", "seeds"]
    groups = groupby(comparison.rows, lambda row: row.measured.group)
    blocks = [[header], *(list(map(_latex_cells, rows)) for _, rows in groups)]
    lines = "\n\\hline\n".join("\n".join(map(_latex_line, block)) for block in blocks)
    return f"\\begin{{tabular}}{{llrrr}}\n\\hline\n{lines}\n\\hline\n\\end{{tabular}}\n"


def _latex_cells(row: Row) -> list[str]:
    difference = "" if row.reference is None else ABSENT
    if row.difference is not None:
        difference = _with_deviation(points(row.difference.mean), row.difference)
    mean = _with_deviation(percent(row.result.mean), row.result)
    return [*named(row.measured), mean, difference, str(row.result.count)]


def _with_deviation(mean: str, values: Spread) -> str:
    return mean if values.deviation is None else f"{mean} ± {percent(values.deviation)}"


def _latex_line(cells: Sequence[str]) -> str:
    escaped = (" ".join("".join(LATEX_SPECIAL.get(c, c) for c in cell).split()) for cell in cells)
    return f"{' & '.join(escaped)} \\\\"
