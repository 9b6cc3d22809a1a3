"""Definitions written out, which faster code of the library is compared with."""

from __future__ import annotations

import numpy as np


def threshold_labels(labels: np.ndarray, maps: np.ndarray, threshold: float, num_classes: int) -> np.ndarray:
    """The label map (H, W) of the maps (K, H, W) of the classes `labels` (K,) with a constant background score: one
    plane for each class, 0 for an absent one; the largest score wins, the lowest label among equals."""
    planes = np.zeros((num_classes, *maps.shape[1:]), np.float32)
    planes[0] = threshold
    planes[labels] = maps
    return planes.argmax(axis=0)
