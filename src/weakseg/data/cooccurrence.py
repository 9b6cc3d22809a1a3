"""How often classes are in one picture. What is nearly always there when a class is, a classifier may take for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weakseg.data.dataset import Sample
from weakseg.labels import judged_labels


def images_with_both(samples: Sequence[Sample], num_classes: int) -> npt.NDArray[np.int64]:
    """(C, C): how many images have the classes of both row and column, 1 … C in order, by their weak labels. On the
    diagonal: how many have the class. `num_classes` is the largest label."""
    labels = np.zeros((len(samples), 1 + num_classes), np.int64)
    for row, sample in zip(labels, samples, strict=True):
        row[list(sample.labels.present())] = 1
    present = labels[:, judged_labels(1 + num_classes)[1:]]
    return present.T @ present


def share_with_other(with_both: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """P(other | class), (C, C): of the images with the class of a row, the share that has the class of a column, too;
    NaN in the rows of classes without images."""
    with np.errstate(invalid="ignore"):
        return with_both / np.diag(with_both)[:, None]
