"""Where a histogram falls into two parts, and how clearly.

N. Otsu, *A threshold selection method from gray-level histograms*, IEEE Trans. SMC 9 (1979): the threshold k with the
largest variance between the two parts, σ_B²(k) = (μ ω(k) - μ(k))² / (ω(k) (1 - ω(k))). Its share η = σ_B² / σ_T² of the
whole variance says how clearly the parts differ: 0 for one value, 1 for two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BINS = 256


class Parts(NamedTuple):
    """Values up to `threshold` are one part, those above it the other; `separability` η is in [0, 1]."""

    threshold: float
    separability: float


def histogram(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How many of the values, any array in [0, 1], fall into each of 256 equal bins."""
    bins = np.minimum((np.asarray(values, np.float64).ravel() * BINS).astype(np.int64), BINS - 1)
    return np.bincount(bins, minlength=BINS)


def otsu(counts: npt.NDArray[np.int64]) -> Parts | None:
    """The two parts of a `histogram`; None where all values lie in one bin. Of equally good thresholds, the middle one
    is taken."""
    centres = (np.arange(BINS) + 0.5) / BINS
    share = counts / max(int(counts.sum()), 1)
    below, moment = share.cumsum()[:-1], (share * centres).cumsum()
    mean, sums = moment[-1], moment[:-1]
    both = (below > 0) & (below < 1 - 1e-12)
    if not both.any():
        return None
    between = np.zeros(BINS - 1)
    between[both] = (mean * below[both] - sums[both]) ** 2 / (below[both] * (1 - below[both]))
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    variance = float((share * (centres - mean) ** 2).sum())
    middle = (int(best[0]) + int(best[-1])) // 2
    return Parts((middle + 1) / BINS, min(1.0, float(between.max()) / variance))
