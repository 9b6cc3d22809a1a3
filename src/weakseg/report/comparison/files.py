"""The files of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from weakseg.files import write_csv, write_json, write_text
from weakseg.pipeline.compare import Cell
from weakseg.report.comparison.documents import latex, markdown
from weakseg.report.comparison.page import comparison_page
from weakseg.report.comparison.reading import Comparison
from weakseg.report.comparison.records import as_dict, class_records, seed_records


def write_comparison(out: Path, cells: Sequence[Cell], failed: Mapping[Path, str]) -> Comparison:
    """Write `compare.json`, `.csv`, `.tex`, `.md`, `.html` and `compare-classes.csv` into the folder of a comparison,
    finished or not. `failed` says why a run has failed: folder → message."""
    comparison = Comparison.read(cells, failed)
    write_json(out / "compare.json", as_dict(comparison))
    write_csv(out / "compare.csv", *seed_records(comparison))
    write_csv(out / "compare-classes.csv", *class_records(comparison))
    write_text(out / "compare.tex", latex(comparison))
    write_text(out / "compare.md", markdown(comparison))
    write_text(out / "compare.html", comparison_page(comparison, out, cells))
    return comparison
