"""The bootstrap of differences in mIoU."""

from __future__ import annotations

import numpy as np
import pytest

from weakseg.ops.bootstrap import gain_interval, mean_iou
from weakseg.ops.confusion import Confusion


def counted(rng: np.random.Generator, right: float, classes: int = 3) -> Confusion:
    """The confusion of one image in which a share of the pixels is right."""
    confusion = Confusion(classes)
    truth = rng.integers(0, classes, (20, 20)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < right, truth, rng.integers(0, classes, truth.shape))
    confusion.update(truth, prediction.astype(np.uint8), "image")
    return confusion


def test_mean_iou_is_that_of_the_classes_in_the_truth() -> None:
    rng = np.random.default_rng(0)
    confusions = [counted(rng, right, classes) for right, classes in ((0.5, 4), (0.9, 4))]
    absent = Confusion(4)
    absent.update(np.array([[0, 1]]), np.array([[0, 3]]), "image")
    confusions.append(absent)
    found = mean_iou(np.stack([confusion.counts for confusion in confusions]))
    assert found == pytest.approx([confusion.mean_iou_in_truth for confusion in confusions])
    assert mean_iou(np.zeros((3, 3), np.int64)) == 0


def test_the_interval_holds_the_difference_and_narrows_with_images() -> None:
    rng = np.random.default_rng(1)
    better, worse = (
        np.stack([counted(rng, right + 0.1 * rng.random()).counts for _ in range(40)]) for right in (0.7, 0.6)
    )
    low, high = gain_interval(better, worse)
    assert 0 < low < float(mean_iou(better.sum(0)) - mean_iou(worse.sum(0))) < high
    few_low, few_high = gain_interval(better[:5], worse[:5])
    assert few_high - few_low > high - low
    assert gain_interval(worse, better) == pytest.approx((-high, -low))
    assert gain_interval(better, better) == (0, 0)
