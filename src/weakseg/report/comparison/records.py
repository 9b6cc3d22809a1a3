"""A comparison for programs: every number as it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from weakseg.ops.paired import CONFIDENCE, Spread
from weakseg.report.comparison.reading import Comparison, Row, Work
from weakseg.version import __version__


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison for a JSON file; scores are fractions of 1."""
    return {
        "weakseg": __version__,
        "data": comparison.data,
        "classes": list(comparison.classes),
        "runs": list(comparison.runs),
        "seeds": list(comparison.seeds),
        "unfinished": dict(comparison.unfinished),
        "confidence": CONFIDENCE,
        "rows": [_row_as_dict(row, comparison.classes) for row in comparison.rows],
        "stages": [_work_as_dict(work) for work in comparison.work],
    }


def _row_as_dict(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    measured, difference = row.measured, None
    if row.reference is not None:
        difference = {"to": row.reference.run, "seeds": 0}
        if row.difference is not None:
            interval = row.difference.interval()
            difference |= {**_spread_as_dict(row.difference), "interval": None if interval is None else list(interval)}
    return {
        "run": measured.run,
        "what": measured.part,
        "number": measured.number,
        "split": measured.split,
        "title": measured.title,
        "metric": "mean_iou",
        **_spread_as_dict(row.result),
        "by_seed": {str(seed): score.mean_iou for seed, score in measured.scores.items()},
        "class_iou": {
            name: {str(seed): score.class_iou[label] for seed, score in measured.scores.items()}
            for label, name in enumerate(classes)
        },
        "difference": difference,
    }


def _spread_as_dict(values: Spread) -> dict[str, Any]:
    return {"mean": values.mean, "deviation": values.deviation, "seeds": values.count}


def _work_as_dict(work: Work) -> dict[str, Any]:
    return {
        "run": work.run,
        "stage": work.stage,
        "kind": work.kind,
        "seconds": {str(seed): seconds for seed, seconds in work.seconds.items()},
        "image_passes": None if work.passes is None else {str(seed): count for seed, count in work.passes.items()},
        "reused_seeds": list(work.reused),
    }


NAMES = ["recipe", "what", "number", "split", "title", "seed"]


def _records(comparison: Comparison) -> Iterator[tuple[Row, int, list[Any]]]:
    for row in comparison.rows:
        for seed in row.measured.scores:
            measured = row.measured
            yield row, seed, [measured.run, measured.part, measured.number, measured.split, measured.title, seed]


def seed_records(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Header and lines of a table for programs: one line for each thing measured in each run, its mean IoU (a fraction
    of 1), and its difference to that of the reference with the same seed."""
    records = []
    for row, seed, names in _records(comparison):
        mean_iou = row.measured.scores[seed].mean_iou
        to, difference = "", None
        if row.reference is not None:
            to = row.reference.run
            if seed in row.reference.scores:
                difference = mean_iou - row.reference.scores[seed].mean_iou
        records.append([*names, mean_iou, to, difference])
    return [*NAMES, "mean_iou", "reference", "difference"], records


def class_records(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """The same with one line for each class and its IoU, None where that is not defined."""
    records = [
        [*names, name, iou]
        for row, seed, names in _records(comparison)
        for name, iou in zip(comparison.classes, row.measured.scores[seed].class_iou, strict=True)
    ]
    return [*NAMES, "class", "iou"], records
