"""Average precision of instance masks, as PASCAL VOC counts it at a mask IoU of ½ (Hariharan et al., ECCV 2014)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import judged_labels
from weakseg.ops.instances import Instances

MIN_IOU = 0.5


@dataclass
class AveragePrecision:
    """Counts images one by one; what several processes have counted is added.

    In an image, the predictions of a class come with falling scores to the true instance that each overlaps most. It is
    found if their IoU is at least `min_iou` and nobody came before; all other predictions are wrong. Over all images,
    sorted by score, precision (made monotone from the right) is summed over recall.
    """

    num_classes: int
    min_iou: float = MIN_IOU
    images: int = 0
    instances: npt.NDArray[np.int64] = field(init=False)
    _predictions: list[tuple[int, float, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instances = np.zeros(self.num_classes, np.int64)

    def update(self, truth: Instances, predicted: Instances, name: str) -> None:
        """Count one image; classes are labels 1 … num_classes - 1. Raises `WeaksegError` where the sizes differ."""
        if truth.masks.shape[1:] != predicted.masks.shape[1:]:
            raise WeaksegError(
                f"{name}: predicted instances have the size {predicted.masks.shape[1:]}, true ones "
                f"{truth.masks.shape[1:]}. Both must come from the same image."
            )
        self.images += 1
        self.instances += np.bincount(truth.labels, minlength=self.num_classes)
        for label in np.unique(predicted.labels).tolist():
            ours = np.flatnonzero(predicted.labels == label)
            ours = ours[np.argsort(-predicted.scores[ours], kind="stable")]
            hits = _hits(truth.masks[truth.labels == label], predicted.masks[ours], self.min_iou)
            self._predictions += zip([label] * len(ours), predicted.scores[ours].tolist(), hits, strict=True)

    def __add__(self, other: AveragePrecision) -> AveragePrecision:
        """What was counted of the images of both, with the same settings."""
        total = AveragePrecision(self.num_classes, self.min_iou, self.images + other.images)
        total.instances = self.instances + other.instances
        total._predictions = self._predictions + other._predictions
        return total

    def average_precision(self) -> npt.NDArray[np.float64]:
        """(num_classes,); 0 for a class that was never predicted, NaN where there are no true instances."""
        result = np.full(self.num_classes, np.nan)
        for label in np.flatnonzero(self.instances).tolist():
            found = sorted((p for p in self._predictions if p[0] == label), key=lambda p: -p[1])
            result[label] = _area(np.array([hit for *_, hit in found], bool), int(self.instances[label]))
        return result

    @property
    def mean(self) -> float:
        """Mean over the classes with true instances; NaN without any."""
        known = self.average_precision()
        known = known[~np.isnan(known)]
        return float(known.mean()) if known.size else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; None stands for NaN."""
        judged = judged_labels(self.num_classes)
        values = [None if np.isnan(value) else float(value) for value in self.average_precision()[judged]]
        return {
            "images": self.images,
            "min_iou": self.min_iou,
            "instances": self.instances[judged].tolist(),
            "average_precision": values,
            "mean_average_precision": None if np.isnan(self.mean) else self.mean,
        }


def _hits(truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], min_iou: float) -> list[bool]:
    """Which predictions (n, H, W), best first, find one of the true instances (m, H, W)."""
    taken: set[int] = set()
    hits = []
    for mask in predicted:
        common, total = (truth & mask).sum((1, 2)), (truth | mask).sum((1, 2))
        iou = common / np.maximum(total, 1)
        best = int(iou.argmax()) if len(iou) else -1
        hits.append(best >= 0 and bool(iou[best] >= min_iou) and best not in taken)
        if hits[-1]:
            taken.add(best)
    return hits


def _area(hits: npt.NDArray[np.bool_], instances: int) -> float:
    """The area under precision over recall."""
    found = hits.cumsum()
    precision = found / np.arange(1, len(hits) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(monotone[hits].sum() / instances)
