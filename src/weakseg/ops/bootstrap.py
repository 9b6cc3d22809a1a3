"""How sure a difference in mIoU is that was measured on few images.

B. Efron, *Bootstrap methods: another look at the jackknife*, Annals of Statistics 7 (1979): the images are drawn with
replacement, again and again, and the quantiles of the differences of all draws are the ends of the interval.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.9

Counts = npt.NDArray[np.int64]
"""(…, 3, C) pixels of each class: predicted right, true, predicted (`ops.confusion.Confusion.counts`)."""


def mean_iou(counts: Counts) -> npt.NDArray[np.float64]:
    """The mean IoU (…) over the classes that occur in the truth; 0 where none does."""
    correct, truth, predicted = np.moveaxis(counts, -2, 0)
    occurs = truth > 0
    iou = np.where(occurs, correct / np.maximum(truth + predicted - correct, 1), 0)
    means: npt.NDArray[np.float64] = iou.sum(-1) / np.maximum(occurs.sum(-1), 1)
    return means


def gain_interval(first: Counts, second: Counts, seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval (90 %, of 1000 draws) of how much larger the mean IoU of the `first` counts is than
    that of the `second`, both (n, 3, C) of the same n images."""
    count = len(first)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    means = [mean_iou(np.tensordot(draws, counts, 1)) for counts in (first, second)]
    low, high = np.quantile(means[0] - means[1], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
