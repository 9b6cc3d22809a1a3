"""How often each label is taken for each: IoU and accuracies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from weakseg.labels import VOID
from weakseg.ops.accumulator import Accumulator, Array, Counts, Scores, as_json, mean_of_numbers, ratio
from weakseg.ops.compiled import compiled
from weakseg.ops.label_maps import Labels, checked_pair


class Confusion(Accumulator):
    """How often each true label was predicted as each label, over the pixels whose ground truth is not void.

    `num_classes` includes the background (21 for PASCAL VOC). A true label that is no class cannot be
    predicted right, it only counts as predicted pixels; a predicted label that is no class, void among them, only
    counts as true pixels.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, matrix=(num_classes + 1, num_classes + 1))

    def update(self, truth: Array, prediction: Array, name: str) -> None:
        """Count one image.

        Both label maps are integers (H, W); negative values are void. Raises `WeaksegError` naming the image for
        anything else and for different sizes; nothing is counted then.
        """
        truth, prediction = checked_pair(truth, prediction, name)
        _count_pairs(self.matrix, truth.ravel(), prediction.ravel())
        self._counts["images"] += 1

    @property
    def matrix(self) -> Counts:
        """Pixels (num_classes + 1, num_classes + 1): true label × predicted label, "no class" last in both."""
        return self._counts["matrix"]

    def judged_matrix(self) -> Counts:
        """The same of the labels that may be judged, "no class" last."""
        kept = [*self.judged, self.num_classes]
        return self.matrix[np.ix_(kept, kept)]

    @property
    def true_positives(self) -> Counts:
        """TP (num_classes,): pixels of each class that were predicted as this class."""
        return self.matrix.diagonal()[self.judged]

    @property
    def truth(self) -> Counts:
        """T (num_classes,): pixels of each class."""
        return self.matrix.sum(axis=1)[self.judged]

    @property
    def predicted(self) -> Counts:
        """P (num_classes,): pixels that were predicted as each class."""
        return self.matrix.sum(axis=0)[self.judged]

    @property
    def counts(self) -> Counts:
        """(3, classes): TP, T and P."""
        return np.stack([self.true_positives, self.truth, self.predicted])

    def iou(self) -> Scores:
        """IoU (num_classes,) as AffinityNet and SEAM define it: TP / (T + P - TP + 1e-10), so 0 for an absent class."""
        self.require_images()
        return self.true_positives / (self.truth + self.predicted - self.true_positives + 1e-10)

    def iou_present(self) -> Scores:
        """IoU (num_classes,): TP / (T + P - TP); NaN for a class that is neither in the truth nor predicted."""
        self.require_images()
        return ratio(self.true_positives, self.truth + self.predicted - self.true_positives)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over all classes, absent ones with 0: the mIoU of AffinityNet, SEAM and their descendants."""
        return float(self.iou().mean())

    @property
    def mean_iou_present(self) -> float:
        """Mean IoU over the classes that occur in the truth or in a prediction (IRNet); NaN if there are none."""
        return mean_of_numbers(self.iou_present())

    @property
    def mean_iou_in_truth(self) -> float:
        """Mean IoU over the classes that occur in the truth (DeepLab); NaN if there are none."""
        return mean_of_numbers(self.iou_present()[self.truth > 0])

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that were predicted right; NaN if all pixels are void."""
        self.require_images()
        return float(ratio(self.true_positives.sum(), self.matrix.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of TP / T over the classes that occur in the truth; NaN if there are none."""
        self.require_images()
        return mean_of_numbers(ratio(self.true_positives, self.truth))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of IoU, weighted by T, over the classes that occur in the truth; NaN if there are none."""
        iou = self.iou_present()
        occurs = self.truth > 0
        return float(ratio(self.truth[occurs] @ iou[occurs], self.matrix.sum()))

    def false_positive_share(self) -> Scores:
        """(P - TP) / (T + P - TP) (num_classes,): how far a class spills over; NaN for an absent class."""
        self.require_images()
        return ratio(self.predicted - self.true_positives, self.truth + self.predicted - self.true_positives)

    def false_negative_share(self) -> Scores:
        """(T - TP) / (T + P - TP) (num_classes,): how much of a class is missed; NaN for an absent class."""
        self.require_images()
        return ratio(self.truth - self.true_positives, self.truth + self.predicted - self.true_positives)

    def of_labelled_pixels(self) -> Confusion:
        """The same, without the pixels whose true or predicted label is no class.

        This is how masks that leave pixels open (255) are judged: only on what they say (ICD's seeds).
        """
        labelled = copy.deepcopy(self)
        labelled.matrix[-1] = 0
        labelled.matrix[:, -1] = 0
        return labelled

    def to_dict(self) -> dict[str, Any]:
        """All scores and counts for a JSON file; a score that is not defined is None."""
        return {
            "num_classes": len(self.judged),
            "images": self.images,
            "pixels": int(self.matrix.sum()),
            "mean_iou": as_json(self.mean_iou),
            "mean_iou_present": as_json(self.mean_iou_present),
            "mean_iou_in_truth": as_json(self.mean_iou_in_truth),
            "pixel_accuracy": as_json(self.pixel_accuracy),
            "mean_accuracy": as_json(self.mean_accuracy),
            "frequency_weighted_iou": as_json(self.frequency_weighted_iou),
            "iou": as_json(self.iou_present()),
            "false_positive_share": as_json(self.false_positive_share()),
            "false_negative_share": as_json(self.false_negative_share()),
            "pixels_of_unknown_class": int(self.matrix[-1].sum()),
            "pixels_predicted_as_no_class": int(self.matrix[:, -1].sum()),
            "matrix": self.judged_matrix().tolist(),
        }


@compiled()
def _count_pairs(matrix: Counts, truth: Labels, prediction: Labels) -> None:
    """Count pixels by (true label, predicted label); labels that are no class share the last row and column."""
    no_class = matrix.shape[0] - 1
    for i in range(truth.size):
        if truth[i] != VOID:
            of_class = prediction[i] != VOID and prediction[i] < no_class
            matrix[min(truth[i], no_class), prediction[i] if of_class else no_class] += 1
