"""Masks that somebody corrected by hand: `corrected/NAME.png` in the folder of a data set, whatever its layout.

They are label maps as a run writes them (0 background, 1 … C in the order of the classes, 255 void), also where the
data set's own masks use other numbers, so that a file of a run can be copied, corrected and put there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report
from weakseg.data.images import IndexMask, files_of_images, image_size
from weakseg.errors import WeaksegError

FOLDER = "corrected"


def with_corrections(dataset: Dataset, report: Report) -> Dataset:
    """The data set with the corrected masks of its images; a file that belongs to no image is a problem."""
    names = {sample.name for samples in dataset.splits.values() for sample in samples}
    found = files_of_images(dataset.folder / FOLDER, names, report)
    if not found:
        return dataset
    labels = dataset.classes.own_values()

    def corrected(sample: Sample) -> Sample:
        return replace(sample, corrected=IndexMask(found[sample.name], labels)) if sample.name in found else sample

    splits = {split: [corrected(sample) for sample in samples] for split, samples in dataset.splits.items()}
    return replace(dataset, splits=splits)


def require_corrections(samples: Sequence[Sample]) -> None:
    """Raise `WeaksegError` for a corrected mask that cannot be read or has another size than its image."""
    for sample in samples:
        if sample.corrected is None:
            continue
        size, expected = sample.corrected.read().shape, image_size(sample.image)
        if size != expected:
            raise WeaksegError(
                f"The corrected mask of {sample.name} has {size[1]}×{size[0]} pixels, its image {sample.image} "
                f"{expected[1]}×{expected[0]}. Save it at the image's size."
            )
