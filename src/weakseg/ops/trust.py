"""How far a pseudo-mask can be trusted, told without ground truth.

In a class: trust = fit · contrast. The *fit* is the IoU of where its map lies above the background and where it lies in
the mask after the CRF: map and image agree on the object, or they do not. The *contrast* is how clearly the map
separates the mask from what lies around it, the share of the map's variance between both (the correlation ratio η²;
Otsu's separability, were the mask Otsu's).

In an image: trust = 2 · strength / (1 + K). The *strength* is the mean of the largest map inside of the mask; an image
with more classes K, and borders between them, has more that can be wrong (its IoU is a mean over 1 + K labels).

All are in [0, 1]. They rank masks; they do not estimate an IoU. docs/experiments/trust.md says what else was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Inside = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32]


class Trust(NamedTuple):
    """`fit` and `contrast` of one class in one image, and the share of the image that it has, all in [0, 1]."""

    fit: float
    contrast: float
    covered: float

    @property
    def value(self) -> float:
        """The trust."""
        return self.fit * self.contrast


def trust_of(activation: Values, before: Inside, after: Inside) -> Trust:
    """The trust in one class: its map, and where it is before and after the CRF, all (h, w). A class that is nowhere
    in the mask has a fit and a contrast of 0."""
    both = int(np.count_nonzero(before | after))
    fit = float(np.count_nonzero(before & after)) / both if both else 0.0
    return Trust(fit, contrast(activation, after), float(after.mean()))


def image_trust(maps: Values, inside: Inside) -> float:
    """The trust in an image: its K ≥ 1 maps (K, h, w), and where the mask has any class (h, w). 0 where it has none."""
    strength = float(np.asarray(maps, np.float64).max(0)[inside].mean()) if inside.any() else 0.0
    return 2 * strength / (1 + len(maps))


def contrast(activation: Values, inside: Inside) -> float:
    """η² = ω (1 - ω) (μ₁ - μ₀)² / σ² of a map (h, w): ω is the share `inside`, μ₁ and μ₀ are the means inside and
    outside, σ² is the variance of the map. 0 where the inside is nothing or all, or the map has one value."""
    values = np.asarray(activation, np.float64)
    share, variance = float(inside.mean()), float(values.var())
    if not 0 < share < 1 or variance <= 0:
        return 0.0
    gap = float(values[inside].mean() - values[~inside].mean())
    return min(1.0, share * (1 - share) * gap * abs(gap) / variance) if gap > 0 else 0.0


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's ρ of two sequences of equal length, equal values with their mean rank; None where it is not defined:
    of fewer than two pairs, or where all values of a sequence are equal."""
    ranks = np.stack([_ranks(np.asarray(values, np.float64)) for values in (first, second)])
    if not ranks.std(1).all():
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
