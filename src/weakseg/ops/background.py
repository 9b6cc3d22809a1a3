"""The background's score for activation maps that have none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from weakseg.labels import BACKGROUND
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.entropy import entropy_threshold
from weakseg.ops.otsu import histogram, otsu

UNDIVIDED = 0.5
"""The threshold of an image whose maps have one value only."""

LEAST = 0.01
"""Nearer to 0 or 1, a threshold has no power of use."""

SURELY_FOREGROUND, SURELY_BACKGROUND = 0.5, 4.0
"""Factors of the power that suits an image (`alpha_for`): what wins against the background of the first is surely an
object, what loses against that of the second is surely background. Of a threshold 0.4 they make 0.52 and 0.20."""


def own_threshold(maps: ActivationMaps) -> float | None:
    """Where the values of the best class of one image, cell by cell, fall into two parts; None where they are one.

    It is half-way between Otsu's threshold (`ops.otsu`), which lies too low for small objects, and that of the largest
    entropy (`ops.entropy`), which lies too high for flat maps.
    """
    counts = histogram(maps.maps[maps.has_background :].max(0, initial=0))
    by_variance, by_entropy = otsu(counts), entropy_threshold(counts)
    return None if by_variance is None or by_entropy is None else (by_variance.threshold + by_entropy) / 2


def usual_threshold(own: Iterable[float | None]) -> float | None:
    """The mean of the images' own thresholds, whatever their order: what images that say little fall back on. None
    where no image has one."""
    known = sorted(threshold for threshold in own if threshold is not None)
    return float(np.mean(known)) if known else None


def adaptive_threshold(maps: ActivationMaps, usual: float | None = None) -> float:
    """The background's score for one image: the threshold that was chosen for its maps, or, without any mask, half-way
    between its `own_threshold` and what is `usual` in its data set, where that is known."""
    if maps.threshold is not None:
        return maps.threshold
    own = own_threshold(maps)
    known = [threshold for threshold in (own, usual) if threshold is not None]
    return sum(known) / len(known) if known else UNDIVIDED


def against_background(maps: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.float32]:
    """Maps (K, H, W) with a constant background of score `threshold` before them, (K + 1, H, W)."""
    return np.concatenate([np.full((1, *maps.shape[1:]), threshold, np.float32), maps])


def with_background(maps: npt.NDArray[np.float32], alpha: float) -> npt.NDArray[np.float32]:
    """Maps (K, H, W) in [0, 1] with the background's score (1 - max_c v_c)^alpha before them, (1 + K, H, W).

    Ahn, Kwak, CVPR 2018 (arXiv 1803.10464), section 3.2.
    """
    background = (1 - maps.max(0, keepdims=True, initial=0)) ** np.float32(alpha)
    return np.concatenate([background, maps])


def with_own_background(maps: ActivationMaps) -> ActivationMaps:
    """Maps of an image with a constant background before them, its `adaptive_threshold`; those that have one as they
    are. A dense CRF mends more of them than of maps `with_background` (docs/experiments/refiners.md)."""
    if maps.has_background:
        return maps
    return _preceded(maps, against_background(maps.maps.astype(np.float32), adaptive_threshold(maps)))


def with_falling_background(maps: ActivationMaps) -> ActivationMaps:
    """Maps of an image with the background of `with_background` before them that is as strong as suits them
    (`alpha_for`), so that it falls where a class rises; those that have one as they are."""
    if maps.has_background:
        return maps
    return _preceded(maps, with_background(maps.maps.astype(np.float32), alpha_for(maps)))


def _preceded(maps: ActivationMaps, scores: npt.NDArray[np.float32]) -> ActivationMaps:
    """The maps with `scores` (1 + K, H, W), the background's first, in place of their own."""
    return replace(maps, labels=np.array([BACKGROUND, *maps.labels], np.int16), maps=scores)


def foreground_share(maps: ActivationMaps) -> float:
    """The share of the cells of maps with a background where a class is above it."""
    return float((maps.maps[1:].max(0, initial=0) > maps.maps[0]).mean())


def alpha_for(maps: ActivationMaps, alpha: float | Literal["adaptive"] = "adaptive", factor: float = 1.0) -> float:
    """The power of `with_background` for one image: `alpha`, or `factor` times the one with which the background is as
    strong as the classes at the image's `adaptive_threshold` t, (1 - t)^alpha = t."""
    if alpha != "adaptive":
        return alpha
    threshold = min(max(adaptive_threshold(maps), LEAST), 1 - LEAST)
    return factor * math.log(threshold) / math.log1p(-threshold)


def threshold_of(alpha: float) -> float:
    """The value t of a class that is as strong as the background of `alpha`, (1 - t)^alpha = t."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if (1 - middle) ** alpha > middle else (low, middle)
    return middle
