"""IoU in which each image counts as often as it has instances, as DensePose is measured in SPML.

Ke, Hwang, Yu, ICLR 2021 (arXiv 2105.00957): the IoU of a class in an image, times the number of its instances there,
over the number of its instances in all images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from weakseg.errors import WeaksegError
from weakseg.labels import judged_labels
from weakseg.ops.accumulator import Array, Scores
from weakseg.ops.label_maps import checked_pair

EPSILON = 1e-12


class InstanceWeighted:
    """Weighted IoU per class. `of_image` are the (IoU, instances) (2, num_classes) of every image, by name.

    An instance is a value of the map of objects, 0 and 255 among them; its class is the most frequent true one in it
    (the lowest of several; 0 where it has none). `num_classes` includes the background.
    """

    def __init__(self, num_classes: int, of_image: Mapping[str, Scores] | None = None) -> None:
        self.num_classes = num_classes
        self.of_image = dict(of_image or {})

    def update(self, truth: Array, prediction: Array, objects: Array, name: str) -> None:
        """Count one image: integers (H, W), classes 0 … num_classes - 1, a true label of no class is left out.

        Raises `WeaksegError` naming the image for label maps that do not fit each other.
        """
        truth, prediction = checked_pair(truth, prediction, name)
        if objects.shape != truth.shape:
            raise WeaksegError(f"{name}: the objects have the size {objects.shape}, the labels {truth.shape}.")
        count = self.num_classes
        known = truth < count
        pairs = truth[known].astype(np.int64) * (count + 1) + np.minimum(prediction[known], count)
        matrix = np.bincount(pairs, minlength=count * (count + 1)).reshape(count, count + 1)
        right, of_truth, predicted = matrix.diagonal(), matrix.sum(1), matrix[:, :count].sum(0)
        ids = np.unique(objects, return_inverse=True)[1].reshape(objects.shape)
        votes = np.bincount(
            ids[known] * count + truth[known].astype(np.int64), minlength=(int(ids.max(initial=-1)) + 1) * count
        )
        instances = np.bincount(votes.reshape(-1, count).argmax(1), minlength=count)
        self.of_image[name] = np.stack([right / (of_truth + predicted - right + EPSILON), instances])

    def iou(self) -> Scores:
        """(classes,), 0 for a class without instances."""
        if not self.of_image:
            raise WeaksegError("No image was evaluated, so there is no score. Is the list of images empty?")
        iou, instances = np.stack([self.of_image[name] for name in sorted(self.of_image)]).transpose(1, 0, 2)
        total: Scores = (iou * instances).sum(0) / (instances.sum(0) + EPSILON)
        return total[judged_labels(self.num_classes)]

    @property
    def mean_iou(self) -> float:
        """The mean of `iou` over all classes; NaN where no image was counted."""
        return float(self.iou().mean()) if self.of_image else math.nan
