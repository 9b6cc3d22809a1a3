"""Boundary F-score of label maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import VOID, judged_labels
from weakseg.ops.accumulator import Accumulator, Array, Scores, as_json, mean_of_numbers, ratio
from weakseg.ops.compiled import compiled
from weakseg.ops.label_maps import Labels, checked_pair

BOUNDARY_TOLERANCE = 0.0075
"""Distance up to which two contours match, as a fraction of the image diagonal (Csurka et al. 2013)."""


class BoundaryScore(Accumulator):
    """Boundary F-score per class: do the contours lie where they should?

    Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation?, BMVC 2013, section 3;
    the F of Perazzi et al., CVPR 2016 (DAVIS). Precision is the share of the predicted contour pixels of a class
    that have a true contour pixel of this class within `tolerance` · image diagonal, recall the reverse,
    F = 2 · precision · recall / (precision + recall).

    Contour pixels are pixels of a class with another label above, below, left or right of them. A contour towards void
    counts, since data sets like PASCAL VOC draw void along all contours; but a predicted contour pixel in void is
    never wrong: it is left out unless it matches.

    The papers average over images. Here contour pixels are pooled over images like the pixels of mIoU.
    """

    def __init__(self, num_classes: int, tolerance: float = BOUNDARY_TOLERANCE) -> None:
        if not 0 <= tolerance < 1:
            raise WeaksegError(
                f"The boundary tolerance is a fraction of the image diagonal (0 … 1); found {tolerance}."
            )
        names = ("truth", "truth_matched", "predicted", "predicted_matched")
        super().__init__(num_classes, **dict.fromkeys(names, judged_labels(num_classes).shape))
        self.tolerance = tolerance

    def update(self, truth: Array, prediction: Array, name: str) -> None:
        """Count one image; the label maps and errors are those of `Confusion.update`."""
        truth, prediction = checked_pair(truth, prediction, name)
        true_contours, predicted_contours = _contours(truth), _contours(prediction)
        disk = _disk(self.tolerance * math.hypot(*truth.shape))
        found = _matches(true_contours, predicted_contours, disk)
        right = _matches(predicted_contours, true_contours, disk)
        self._add("truth", true_contours)
        self._add("truth_matched", true_contours[found])
        self._add("predicted", predicted_contours[right | (truth != VOID)])
        self._add("predicted_matched", predicted_contours[right])
        self._counts["images"] += 1

    def _add(self, name: str, contours: Labels) -> None:
        self._counts[name] += np.bincount(contours.ravel(), minlength=self.num_classes)[self.judged]

    def precision(self) -> Scores:
        """(num_classes,); NaN where no contour was predicted."""
        self.require_images()
        return ratio(self._counts["predicted_matched"], self._counts["predicted"])

    def recall(self) -> Scores:
        """(num_classes,); NaN where there is no true contour."""
        self.require_images()
        return ratio(self._counts["truth_matched"], self._counts["truth"])

    def f_score(self) -> Scores:
        """(num_classes,); 0 where only one side has contours, NaN where neither has."""
        precision, recall = np.nan_to_num(self.precision()), np.nan_to_num(self.recall())
        f_score = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
        return np.where(self._counts["truth"] + self._counts["predicted"] > 0, f_score, np.nan)

    @property
    def mean_f_score(self) -> float:
        """Mean of `f_score` over the classes with any contour; NaN if there are none."""
        return mean_of_numbers(self.f_score())

    def to_dict(self) -> dict[str, Any]:
        """All scores for a JSON file; a score that is not defined is None."""
        return {
            "images": self.images,
            "tolerance": self.tolerance,
            "mean_f_score": as_json(self.mean_f_score),
            "f_score": as_json(self.f_score()),
            "precision": as_json(self.precision()),
            "recall": as_json(self.recall()),
        }

    def _settings(self) -> tuple[object, ...]:
        return *super()._settings(), self.tolerance


def _contours(labels: Labels) -> Labels:
    """The label of every pixel with a neighbour of another label, VOID elsewhere."""
    different = np.zeros(labels.shape, bool)
    below, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    different[1:] |= below
    different[:-1] |= below
    different[:, 1:] |= right
    different[:, :-1] |= right
    return np.where(different, labels, np.uint8(VOID))


def _disk(radius: float) -> npt.NDArray[np.int64]:
    """All offsets (M, 2) = (dy, dx) up to `radius` pixels long, the shortest first."""
    reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    lengths = (offsets**2).sum(axis=1)
    nearest_first = np.argsort(lengths, kind="stable")
    return offsets[nearest_first][lengths[nearest_first] <= radius**2]


@compiled()
def _matches(contours: Labels, others: Labels, disk: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Where a contour pixel has one of the same label among `others` within `disk`."""
    height, width = contours.shape
    matched = np.zeros((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            if contours[y, x] == VOID:
                continue
            for dy, dx in disk:
                v, u = y + dy, x + dx
                if 0 <= v < height and 0 <= u < width and others[v, u] == contours[y, x]:
                    matched[y, x] = True
                    break
    return matched
