"""Superpixels: graph segmentation, the mean feature of every segment, merging of similar segments.

A map of superpixels is an array of ids, int32 (H, W), dense: 0 … S - 1, each with at least one pixel.

P. Felzenszwalb, D. Huttenlocher, *Efficient Graph-Based Image Segmentation*, IJCV 59(2), 2004; the merging is that of
J. Fan, Z. Zhang, C. Song, T. Tan, *Learning Integral Objects with Intra-Class Discriminator for Weakly-Supervised
Semantic Segmentation*, CVPR 2020.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from weakseg.errors import WeaksegError
from weakseg.ops.compiled import compiled
from weakseg.ops.instances import compressed

Ids = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

MAX_SEGMENTS = 8192
"""Merging keeps a number of 8 bytes for every pair of segments: 512 MiB for so many."""


# Graph segmentation ---------------------------------------------------------------------------------------------------


def graph_segments(image: Pixels, sigma: float = 0.8, k: float = 75, min_size: int = 75) -> Ids:
    """Segment an RGB image (H, W, 3), uint8, by merging neighbours along a minimum spanning forest (Felzenszwalb and
    Huttenlocher 2004, section 4); segments are 8-connected, their ids in the order of first appearance.

    `sigma`, in pixels, smooths the image first. Larger `k` gives larger segments; those of fewer than `min_size`
    pixels are merged into a neighbour.
    """
    # Imported here as it takes longer than everything else in this file.
    from skimage.segmentation import felzenszwalb

    if image.size == 3:
        return np.zeros(image.shape[:2], np.int32)  # a graph without edges
    # scikit-image's own smoothing has a smaller radius and another border than the authors'.
    smooth = smoothed(image, sigma) / np.float32(255)
    return renumbered(felzenszwalb(smooth, scale=k, sigma=0, min_size=min_size))


def smoothed(image: Pixels, sigma: float) -> npt.NDArray[np.float32]:
    """An image (H, W, 3) after the authors' Gaussian filter, in [0, 255]: along rows, then along columns, the border
    repeated."""
    taps = gaussian_taps(sigma)
    return _filtered(_filtered(image.astype(np.float32), taps, 1), taps, 0)


def gaussian_taps(sigma: float) -> npt.NDArray[np.float32]:
    """Weights (N,) of the distances 0 … N - 1 for a Gaussian filter of radius ceil(4 sigma)."""
    sigma = max(sigma, 0.01)
    distances = np.arange(math.ceil(4 * sigma) + 1)
    taps = np.exp(-0.5 * (distances / sigma) ** 2).astype(np.float32)
    return taps / (taps[0] + 2 * taps[1:].sum())


def _filtered(values: npt.NDArray[np.float32], taps: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """A symmetric filter along an axis. The order of the sum is part of the definition: segments depend on the last
    bits."""
    places = np.arange(values.shape[axis])
    total = taps[0] * values
    for distance, tap in enumerate(taps[1:], start=1):
        before, after = (values.take(places + shift, axis, mode="clip") for shift in (-distance, distance))
        total += tap * (before + after)
    return total


def renumbered(ids: npt.NDArray[Any]) -> Ids:
    """Ids replaced by 0, 1, 2, … in the order of their first appearance, row by row."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].reshape(ids.shape)


# Features of segments -------------------------------------------------------------------------------------------------


def segment_features(dense: npt.NDArray[np.float32], ids: Ids, canvas: Size) -> npt.NDArray[np.float32]:
    """The mean (S, C) over each segment's pixels of a feature map (C, h, w) enlarged to the size `canvas`.

    The enlargement is bilinear, corners on corners; the image of `ids` (H, W) is the upper left part of the canvas.
    It is linear, so the mean is a sum over the cells of the map, and no enlarged map is made.
    """
    channels, *cells = dense.shape
    rows, columns = (_corner_aligned(*sides) for sides in zip(ids.shape, canvas, cells, strict=True))
    count, area = int(ids.max()) + 1, cells[0] * cells[1]
    shares = sparse.csr_array((count, area))
    for row, row_weight in rows:
        for column, column_weight in columns:
            cell = row[:, None] * cells[1] + column
            weights = np.outer(row_weight, column_weight)
            shares += sparse.csr_array((weights.ravel(), (ids.ravel(), cell.ravel())), (count, area))
    sums = shares @ dense.reshape(channels, area).T.astype(np.float64)
    return (sums / np.bincount(ids.ravel())[:, None]).astype(np.float32)


def _corner_aligned(pixels: int, canvas: int, cells: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]]:
    """The two cells, and their weights, of each of the first `pixels` positions of `canvas` along an axis."""
    positions = np.arange(pixels) * ((cells - 1) / max(canvas - 1, 1))
    weight, first = np.modf(positions)
    cell = first.astype(np.intp)
    return [(cell, 1 - weight), (np.minimum(cell + 1, cells - 1), weight)]


# Merging --------------------------------------------------------------------------------------------------------------


class Merging(NamedTuple):
    """`ids`: the map after merging, in the order of the old ids; `pairs` int32 (M, 2): old ids i < j, in the order in
    which j was merged into i."""

    ids: Ids
    pairs: npt.NDArray[np.int32]


def merge_segments(ids: Ids, features: npt.NDArray[np.float32], count: int) -> Merging:
    """Merge the most similar pair of segments, adjacent or not, until `count` are left (Fan et al. 2020, section 3.4).

    The similarity of two segments is the cosine of their `features` (S, C), which a merged segment has the mean of
    over its pixels, plus 1 less their share of the image. A feature of zeros has the cosine 0. Of equally similar pairs
    the one with the least i, then the least j is taken. Raises `WeaksegError` for more than `MAX_SEGMENTS` segments and
    for features that are not finite.
    """
    sizes = np.bincount(ids.ravel(), minlength=len(features))
    if len(sizes) != len(features) or not sizes.all():
        raise ValueError(f"ids are to be dense, 0 … {len(features) - 1}, as there are {len(features)} features")
    if count < 1:
        raise ValueError(f"at least 1 segment is left, not {count}")
    if len(features) <= count:
        return Merging(ids, np.zeros((0, 2), np.int32))
    require_mergeable(len(features))
    if not np.isfinite(features).all():
        raise WeaksegError(
            "The features of the segments are not all finite numbers. Are the weights those of a network?"
        )
    exact = features.astype(np.float64)
    pairs = np.empty((len(features) - count, 2), np.int32)
    _merge(exact @ exact.T, sizes.astype(np.float64), pairs)
    parents = np.arange(len(features))
    for i, j in pairs[::-1]:  # the parent of i, which may be merged later on, is known before that of j
        parents[j] = parents[i]
    return Merging(compressed(parents[ids]), pairs)


def require_mergeable(segments: int) -> None:
    """Raise `WeaksegError` for more than `MAX_SEGMENTS` segments."""
    if segments > MAX_SEGMENTS:
        raise WeaksegError(
            f"There are {segments} segments, and at most {MAX_SEGMENTS} can be merged. Scale the image down, or make k "
            "and min_size larger."
        )


@compiled()
def _merge(gram: Any, sizes: Any, pairs: Any) -> None:
    """Fill in `pairs`, row by row. `gram` has the products of all features; merging two segments mixes their rows, so
    no feature is touched. Each segment keeps its best partner among those behind it."""
    count, area = len(gram), sizes.sum()
    alive = np.ones(count, np.bool_)
    partner = np.zeros(count, np.intp)
    best = np.empty(count, np.float32)
    for segment in range(count):
        partner[segment], best[segment] = _best_partner(gram, sizes, area, alive, segment)
    for step in range(len(pairs)):
        i = np.argmax(best)
        j = partner[i]
        pairs[step] = i, j
        _mix(gram, sizes, i, j)
        alive[j], best[j] = False, -np.inf
        partner[i], best[i] = _best_partner(gram, sizes, area, alive, i)
        for other in range(j):
            if other == i or not alive[other]:
                continue
            if partner[other] == j or partner[other] == i:
                partner[other], best[other] = _best_partner(gram, sizes, area, alive, other)
            elif other < i:
                similarity = _similarity(gram, sizes, area, other, i)
                if similarity > best[other] or (similarity == best[other] and i < partner[other]):
                    partner[other], best[other] = i, similarity


@compiled(inner=True)
def _mix(gram: Any, sizes: Any, i: int, j: int) -> None:
    """Give segment i the size and the products of i and j together."""
    share = sizes[i] / (sizes[i] + sizes[j])
    itself = share**2 * gram[i, i] + 2 * share * (1 - share) * gram[i, j] + (1 - share) ** 2 * gram[j, j]
    for other in range(len(gram)):
        gram[i, other] = share * gram[i, other] + (1 - share) * gram[j, other]
        gram[other, i] = gram[i, other]
    gram[i, i] = itself
    sizes[i] += sizes[j]


@compiled(inner=True)
def _best_partner(gram: Any, sizes: Any, area: float, alive: Any, i: int) -> Any:
    """The first of the most similar segments behind i, and how similar it is; -inf if there is none."""
    partner, best = i, np.float32(-np.inf)
    for j in range(i + 1, len(gram)):
        if alive[j]:
            similarity = _similarity(gram, sizes, area, i, j)
            if similarity > best:
                partner, best = j, similarity
    return partner, best


@compiled(inner=True)
def _similarity(gram: Any, sizes: Any, area: float, i: int, j: int) -> Any:
    """In float32, as the original compares."""
    norms = np.sqrt(gram[i, i] * gram[j, j])
    cosine = gram[i, j] / norms if norms > 0 else 0.0
    return np.float32(cosine + 1 - (sizes[i] + sizes[j]) / area)
