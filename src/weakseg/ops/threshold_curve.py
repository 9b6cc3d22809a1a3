"""IoU of activation maps at every background score of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.ops.accumulator import Accumulator, Array, Counts, Scores, as_json
from weakseg.ops.compiled import compiled
from weakseg.ops.confusion import Confusion
from weakseg.ops.label_maps import Labels, checked_label_map, require_same_size

THRESHOLDS = tuple(i / 100 for i in range(60))
"""The background scores 0.00, 0.01, …, 0.59 of AffinityNet's and SEAM's evaluation."""


class ThresholdCurve(Accumulator):
    """The `Confusion` of activation maps at every background score of a list, from one pass over the pixels.

    A pixel with the best class score s is foreground at threshold t if and only if s > t, compared in float32
    (the evaluation of AffinityNet and SEAM: a constant map t is put before the class maps, and the first maximum
    wins). So only the number b of thresholds below s matters, and counting pixels by (true label,
    best class, b) gives all confusions exactly.

    `thresholds` are not negative and ascend; those that float32 cannot tell apart are taken once.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] = THRESHOLDS) -> None:
        given = np.asarray(thresholds, np.float64)
        if not (given.ndim == 1 and given.size and given.min() >= 0 and np.isfinite(given).all()):
            raise WeaksegError(f"Thresholds of the curve are a list of numbers ≥ 0; found {thresholds}.")
        if (np.diff(given) < 0).any():
            raise WeaksegError(f"Thresholds of the curve must ascend; found {thresholds}.")
        self._levels, first = np.unique(given.astype(np.float32), return_index=True)
        self.thresholds: Scores = given[first]
        super().__init__(num_classes, histogram=(num_classes + 1, num_classes, len(self._levels) + 1))

    def update(self, truth: Array, labels: Array, maps: Array, name: str) -> None:
        """Count one image.

        `truth` is a label map (H, W), `labels` (K,) the classes (1 … num_classes - 1) of `maps` (K, H, W), a float
        type; in any order, K may be 0. Maps of other types than float32 are converted to it first. Raises
        `WeaksegError` naming the image for anything else, for different sizes and for NaN; nothing is counted then.
        """
        truth = checked_label_map(truth, "ground truth", name)
        labels, maps = _activation_maps(labels, maps, self.num_classes, name)
        require_same_size(truth, maps.shape[1:], "activation maps", name)
        _count_scores(
            self._counts["histogram"], truth.ravel(), labels, maps.reshape(len(labels), truth.size), self._levels
        )
        self._counts["images"] += 1

    def __len__(self) -> int:
        return len(self.thresholds)

    def at(self, index: int) -> Confusion:
        """The confusion at `thresholds[index]`, equal in every count to that of label maps at this threshold."""
        index = range(len(self))[index]
        histogram = self._counts["histogram"]
        foreground = histogram[:, 1:, index + 1 :].sum(axis=2)
        confusion = Confusion(self.num_classes)
        confusion.matrix[:, 0] = histogram.sum(axis=(1, 2)) - foreground.sum(axis=1)
        confusion.matrix[:, 1:-1] = foreground
        confusion._counts["images"][:] = self.images
        return confusion

    @property
    def mean_iou(self) -> Scores:
        """`Confusion.mean_iou` at each threshold."""
        return np.array([self.at(i).mean_iou for i in range(len(self))])

    @property
    def mean_iou_present(self) -> Scores:
        """`Confusion.mean_iou_present` at each threshold."""
        return np.array([self.at(i).mean_iou_present for i in range(len(self))])

    def best(self) -> int:
        """The index of the threshold with the largest `mean_iou`, the lowest of equal ones."""
        return int(self.mean_iou.argmax())

    def to_dict(self) -> dict[str, Any]:
        """The curve and its best point for a JSON file."""
        best = self.best()
        return {
            "images": self.images,
            "thresholds": self.thresholds.tolist(),
            "mean_iou": as_json(self.mean_iou),
            "mean_iou_present": as_json(self.mean_iou_present),
            "best_threshold": float(self.thresholds[best]),
            "best": self.at(best).to_dict(),
        }

    def _settings(self) -> tuple[object, ...]:
        return *super()._settings(), tuple(self._levels.tolist())


def _activation_maps(
    labels: Array, maps: Array, num_classes: int, name: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Checked labels (K,) in ascending order and their maps (K, H, W) as float32."""
    labels, maps = np.asarray(labels), np.asarray(maps)
    if labels.ndim != 1 or maps.ndim != 3 or len(labels) != len(maps):
        raise WeaksegError(
            f"{name}: found labels of shape {labels.shape} and activation maps of shape {maps.shape}; "
            "expected (K,) and (K, H, W)."
        )
    if maps.dtype.kind != "f":
        raise WeaksegError(f"{name}: the activation maps are of type {maps.dtype}; expected float32.")
    foreground = np.isin(labels, np.arange(1, num_classes))
    if not foreground.all() or len(np.unique(labels)) < len(labels):
        raise WeaksegError(
            f"{name}: the activation maps have the labels {labels.tolist()}; expected different ones "
            f"in 1 … {num_classes - 1}."
        )
    if np.isnan(maps).any():
        raise WeaksegError(f"{name}: the activation maps hold NaN. Delete them and compute them anew.")
    order = np.argsort(labels)
    return labels[order].astype(np.int64), np.ascontiguousarray(maps[order], np.float32)


@compiled()
def _count_scores(
    histogram: Counts,
    truth: Labels,
    labels: npt.NDArray[np.int64],
    maps: npt.NDArray[np.float32],
    levels: npt.NDArray[np.float32],
) -> None:
    """Count pixels by (true label, label of the first largest score, number of levels below this score)."""
    no_class = histogram.shape[0] - 1
    for i in range(truth.size):
        if truth[i] == VOID:
            continue
        label, score = 0, np.float32(-np.inf)
        for k in range(labels.size):
            if maps[k, i] > score:
                label, score = labels[k], maps[k, i]
        low, high = 0, levels.size
        while low < high:
            middle = (low + high) // 2
            if levels[middle] < score:
                low = middle + 1
            else:
                high = middle
        histogram[min(truth[i], no_class), label, low] += 1
