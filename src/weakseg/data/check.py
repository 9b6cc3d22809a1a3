"""Everything that is wrong with a data set, found before a training starts instead of hours into it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report
from weakseg.data.images import conversions, read_image
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.labels import WeakLabels

HELD_OUT = ("val", "test")
EXAMPLES = 5


def check_dataset(
    path: Path | str, format: str | None = None, on_image: Callable[[int, int], None] | None = None
) -> Report:
    """Read every image and every mask once and report all problems and notes, never raising for them.

    Problems: whatever the reader of the format finds, damaged or too large images and masks, masks of another
    size than their image or with unknown values, boxes, points and scribbles outside their image, empty splits,
    images in both a training and a validation or test split. Notes: images that are converted when they are
    read, images without labels in a training split, images without a mask in a split where others have one.

    `on_image(done, total)` is called after each image.
    """
    report = Report()
    try:
        dataset = open_dataset(path, format, report)
    except WeaksegError as error:
        report.problems.append(str(error))
        return report
    _check_splits(dataset, report)
    _check_files(dataset, report, on_image or (lambda done, total: None))
    return report


# Splits


def _check_splits(dataset: Dataset, report: Report) -> None:
    held_out = {
        sample.name: split
        for split, samples in dataset.splits.items()
        if split.startswith(HELD_OUT)
        for sample in samples
    }
    for split, samples in dataset.splits.items():
        if not samples:
            report.problems.append(f'The split "{split}" is empty.')
        # VOC's list "trainval" is the two together on purpose.
        if split.startswith("train") and "val" not in split:
            report.problems += [
                f'"{sample.name}" is in the splits "{split}" and "{held_out[sample.name]}". Remove it from one of them.'
                for sample in samples
                if sample.name in held_out
            ]
        if not split.startswith(HELD_OUT):
            unlabelled = [sample.name for sample in samples if not sample.labels.known and sample.mask is None]
            _note(report, f'of the split "{split}" without any label', unlabelled)
        unmasked = [sample.name for sample in samples if sample.mask is None]
        if len(unmasked) < len(samples):
            _note(report, f'of the split "{split}" without a mask, which others have', unmasked)


def _note(report: Report, text: str, names: list[str]) -> None:
    if names:
        more = ", …" if len(names) > EXAMPLES else ""
        noun = "image" if len(names) == 1 else "images"
        report.notes.append(f"{len(names)} {noun} {text}: {', '.join(names[:EXAMPLES])}{more}")


# Files


class _Finding(NamedTuple):
    name: str
    problems: list[str]
    conversions: list[str]


def _check_files(dataset: Dataset, report: Report, on_image: Callable[[int, int], None]) -> None:
    variants: dict[str, list[Sample]] = {}
    for samples in dataset.splits.values():
        for sample in samples:
            known = variants.setdefault(sample.name, [])
            if sample not in known:
                known.append(sample)

    converted: dict[str, list[str]] = defaultdict(list)
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        for done, finding in enumerate(pool.map(_check_image, variants.values()), 1):
            report.problems += finding.problems
            for kind in finding.conversions:
                converted[kind].append(finding.name)
            on_image(done, len(variants))
    finally:
        pool.shutdown(cancel_futures=True)
    for kind, names in sorted(converted.items()):
        _note(report, f"to be converted on reading ({kind})", names)


def _check_image(variants: list[Sample]) -> _Finding:
    """The findings about one image, which several splits may list with different masks."""
    sample = variants[0]
    try:
        height, width = read_image(sample.image).shape[:2]
        kinds = conversions(sample.image)
    except WeaksegError as error:
        return _Finding(sample.name, [str(error)], [])
    problems = [
        f"{sample.image}: {text} outside the image of {height} × {width} pixels (height × width)."
        for text in _outside(sample.labels, height, width)
    ]
    for variant in variants:
        for what, source in (("mask", variant.mask), ("context mask", variant.context)):
            if source is None:
                continue
            try:
                shape = source.read().shape
                if shape != (height, width):
                    problems.append(
                        f"{sample.image} has {height} × {width} pixels (height × width), "
                        f"but its {what} {shape[0]} × {shape[1]}. Their sizes must be equal."
                    )
            except WeaksegError as error:
                problems.append(str(error))
    return _Finding(sample.name, problems, kinds)


def _outside(labels: WeakLabels, height: int, width: int) -> list[str]:
    """The spatial labels that do not lie within an image."""
    found = [
        f"the box {(box.x0, box.y0, box.x1, box.y1)} reaches"
        for box in labels.boxes
        if not (0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height)
    ]
    points = [("point", (point.x, point.y)) for point in labels.points]
    points += [("scribble point", point) for scribble in labels.scribbles for point in scribble.points]
    found += [f"the {kind} {(x, y)} lies" for kind, (x, y) in points if not (0 <= x < width and 0 <= y < height)]
    return found
