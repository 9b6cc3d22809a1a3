"""A background score for activation maps that have none."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from weakseg.ops.activation import ActivationMaps
from weakseg.ops.otsu import histogram, otsu

UNDIVIDED = 0.5
"""Where maps are taken to fall into two parts that hold one value only."""


def with_background(maps: npt.NDArray[np.float32], alpha: float) -> npt.NDArray[np.float32]:
    """Maps (K, H, W) in [0, 1] with the background's score (1 - max_c v_c)^alpha before them, (1 + K, H, W).

    Ahn, Kwak, CVPR 2018 (arXiv 1803.10464), section 3.2.
    """
    background = (1 - maps.max(0, keepdims=True, initial=0)) ** np.float32(alpha)
    return np.concatenate([background, maps])


def adaptive_alpha(maps: ActivationMaps) -> float:
    """The alpha with which the background of an image is as strong as its classes at the threshold t that divides the
    values of its best class most clearly (`ops.otsu`): (1 - t)^alpha = t."""
    parts = otsu(histogram(maps.maps.max(0, initial=0)))
    threshold = UNDIVIDED if parts is None else parts.threshold
    return math.log(threshold) / math.log1p(-threshold)
