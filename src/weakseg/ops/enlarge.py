"""Scores found on a small copy of an image, enlarged to the image itself along its edges.

K. He, J. Sun, *Fast Guided Filter*, 2015 (arXiv 1505.00996): in a window k around each pixel, the scores are taken as
linear in the brightness I of the image, q = a_k I + b_k; a and b are found on the small copy, smooth, and enlarged:

    a = cov(I, p) / (var(I) + ε),    b = mean(p) - a mean(I),    q = ā I + b̄

The result is made in strips of rows, so that the memory does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter
from torch.nn import functional as F

from weakseg.labels import VOID

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

RADIUS = 2
"""The window reaches so many pixels of the small copy to each side."""
EPSILON = 1e-3
"""ε, for a brightness from 0 to 1: a variance that counts as an edge is larger."""
VALUES_AT_ONCE = 1 << 22
"""So many coefficients are enlarged in one strip."""


def enlarge_to_labels(scores: Scores, small: Pixels, image: Pixels) -> npt.NDArray[np.intp]:
    """The best row of scores (R, h, w) of a `small` copy (h, w, 3) at every pixel (H, W) of `image` (H, W, 3).

    A row that is the best nowhere in the small copy is taken for one that cannot win.
    """
    winners = np.unique(scores.argmax(0))
    labels = np.empty(image.shape[:2], np.intp if len(scores) > VOID else np.uint8)
    for rows, enlarged in _strips(scores[winners], small, image):
        labels[rows] = winners[enlarged.argmax(0)]
    return labels


def enlarge_scores(scores: Scores, small: Pixels, image: Pixels) -> Scores:
    """All of the scores (R, h, w) at the size of `image`, (R, H, W)."""
    whole = np.empty((len(scores), *image.shape[:2]), np.float32)
    for rows, enlarged in _strips(scores, small, image):
        whole[:, rows] = enlarged
    return whole


def enlarge_label_map(labels: Pixels, small: Pixels, image: Pixels) -> Pixels:
    """A label map (h, w) of a `small` copy (h, w, 3) at the size of `image`."""
    if image.shape == small.shape:
        return labels
    known = np.unique(labels)
    scores = (labels == known[:, None, None]).astype(np.float32)
    return known[enlarge_to_labels(scores, small, image)]


def _strips(scores: Scores, small: Pixels, image: Pixels) -> Iterator[tuple[slice, Scores]]:
    """Rows of the image, and the scores (R, rows, W) there."""
    slope, offset = _coefficients(scores, _brightness(small))
    coefficients = np.concatenate([slope, offset])
    height, width = image.shape[:2]
    step = max(1, VALUES_AT_ONCE // (len(coefficients) * width))
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        slope, offset = np.split(_rows_of(coefficients, rows, height, width), 2)
        yield rows, slope * _brightness(image[rows]) + offset


def _coefficients(scores: Scores, guide: Scores) -> tuple[Scores, Scores]:
    """ā and b̄, (R, h, w) each."""
    mean, mean_score = _box(guide), _box(scores)
    variance = _box(guide * guide) - mean * mean
    slope = (_box(guide * scores) - mean * mean_score) / (variance + np.float32(EPSILON))
    return _box(slope), _box(mean_score - slope * mean)


def _box(values: npt.NDArray[Any]) -> Scores:
    """The mean over the window around each pixel of the last two axes."""
    side = 2 * RADIUS + 1
    return np.asarray(uniform_filter(values, [1] * (values.ndim - 2) + [side, side], mode="nearest"), np.float32)


def _brightness(image: Pixels) -> Scores:
    return image.mean(-1, dtype=np.float32) / np.float32(255)


def _rows_of(values: Scores, rows: slice, height: int, width: int) -> Scores:
    """Some rows of values (K, h, w) enlarged to (K, height, width), bilinear (align_corners=False)."""
    source = (np.arange(rows.start, rows.stop) + 0.5) * (values.shape[1] / height) - 0.5
    source = source.clip(0, values.shape[1] - 1)
    above = source.astype(np.intp)
    below = np.minimum(above + 1, values.shape[1] - 1)
    part = (source - above).astype(np.float32)[:, None]
    between = values[:, above] * (1 - part) + values[:, below] * part
    return F.interpolate(torch.from_numpy(between), width, mode="linear", align_corners=False).numpy()
