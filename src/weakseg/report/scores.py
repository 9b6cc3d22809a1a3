"""The scores of a run as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weakseg.report.folder import RunFolder
from weakseg.report.tables import ABSENT, Cells, percent, text_table


def scores_table(run: Path) -> str:
    """The scores of a run in plain text, or a sentence on why there are none."""
    folder = RunFolder.read(run)
    rows = folder.scores
    if not rows:
        return folder.status() or "The run has no scores, since its data have no ground truth to measure against."
    return "\n".join(filter(None, [text_table(*score_cells(rows)), folder.status()]))


def score_cells(rows: Sequence[Mapping[str, Any]]) -> Cells:
    """The header and the cells of the table of scores, in percent.

    Means over all classes (absent ones count 0) and over the classes that occur are both there if they differ. How much
    activation falls on contexts is there if it was measured.
    """
    means = {"mIoU %": "mean_iou"}
    if any(percent(row["mean_iou"]) != percent(row["mean_iou_present"]) for row in rows):
        means = {"mIoU %, all classes": "mean_iou", "mIoU %, classes that occur": "mean_iou_present"}
    contexts = {"on context %": "share"} if any("context" in row for row in rows) else {}
    header = ["what", "split", *means, "boundary F %", "threshold", *contexts, "images"]
    cells = [
        [
            row["title"],
            row["split"],
            *(percent(row[key]) for key in means.values()),
            percent(row.get("boundary_f")),
            f"{row['threshold']:.2f}" if "threshold" in row else ABSENT,
            *(percent(row.get("context", {}).get(key)) for key in contexts.values()),
            str(row["images"]),
        ]
        for row in rows
    ]
    return header, cells
