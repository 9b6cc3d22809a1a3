"""Sizes of images, nearest-neighbour resizing of label maps that does not shift them, and averages over cells.

Nearest neighbour: an output pixel takes the label of the source pixel that contains its centre. The default "nearest"
of OpenCV and PyTorch takes the corner instead, which shifts the labels by up to half an output pixel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from weakseg.labels import VOID

Labels = TypeVar("Labels", npt.NDArray[np.uint8], npt.NDArray[np.bool_], Tensor)


@lru_cache(maxsize=4096)
def nearest_indices(source: int, target: int) -> npt.NDArray[np.intp]:
    """The source index of each of `target` output positions along an axis of `source` pixels.

    Index i is floor(v_i) with v_0 = source / (2 target) and v_i = v_(i-1) + source / target in float64. The running
    sum is what Pillow's nearest filter does; where a centre falls between two pixels its rounding decides.
    """
    step = source / target
    centres = np.cumsum(np.concatenate([[0.5 * step], np.full(target - 1, step)]))
    indices = centres.astype(np.intp)
    indices.flags.writeable = False
    return indices


@lru_cache(maxsize=4096)
def _nearest_indices_on(device: torch.device, source: int, target: int) -> Tensor:
    return torch.tensor(nearest_indices(source, target), device=device)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """A label map or a batch of them, (..., H, W) of any type, resized to `size` = (height, width).

    Takes and returns a NumPy array or a tensor, which stays on its device.
    """
    height, width = int(labels.shape[-2]), int(labels.shape[-1])
    if (height, width) == tuple(size):
        return labels
    if isinstance(labels, Tensor):
        rows = _nearest_indices_on(labels.device, height, size[0])
        columns = _nearest_indices_on(labels.device, width, size[1])
        return labels.index_select(-2, rows).index_select(-1, columns)
    return labels.take(nearest_indices(height, size[0]), axis=-2).take(nearest_indices(width, size[1]), axis=-1)


def cell_counts(inside: npt.NDArray[np.bool_], grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How many pixels of `inside` (..., H, W) are set in each cell of a `grid` (h, w): cell (a, b) has the rows
    floor(a H / h) to ceil((a + 1) H / h) - 1 and the columns alike, as in adaptive average pooling. Neighbours share
    pixels where H is no multiple of h."""
    sums = np.zeros((*inside.shape[:-2], inside.shape[-2] + 1, inside.shape[-1] + 1), np.int64)
    sums[..., 1:, 1:] = inside.cumsum(-2, dtype=np.int64).cumsum(-1)
    (top, bottom), (left, right) = (_cells(side, n) for side, n in zip(inside.shape[-2:], grid, strict=True))
    rows = sums[..., bottom, :] - sums[..., top, :]
    return rows[..., right] - rows[..., left]


def cell_areas(size: tuple[int, int], grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """How many pixels of an image of `size` (H, W) each cell of a `grid` (h, w) has, see `cell_counts`."""
    (top, bottom), (left, right) = (_cells(side, n) for side, n in zip(size, grid, strict=True))
    return np.multiply.outer(bottom - top, right - left)


def _cells(side: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first position of each of `count` cells, and the one after its last."""
    cells = np.arange(count, dtype=np.int64)
    return cells * side // count, -(-(cells + 1) * side // count)


def within_long_side(size: tuple[int, int], long_side: int | None) -> tuple[int, int]:
    """(H, W), scaled down so that no side is longer than `long_side`; as it is where none is, or for None."""
    if long_side is None or max(size) <= long_side:
        return size
    height, width = (max(1, round(side * long_side / max(size))) for side in size)
    return height, width


def shrink_image(image: npt.NDArray[np.uint8], long_side: int | None) -> npt.NDArray[np.uint8]:
    """An image (H, W, 3) `within_long_side`, by Pillow's bicubic filter, which is wider the smaller the result."""
    height, width = within_long_side((image.shape[0], image.shape[1]), long_side)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def shrink_marks(marks: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A partial label map (H, W), 255 where nothing is known, at a smaller `size`; no mark is lost, however thin."""
    y, x = np.nonzero(marks != VOID)
    small = np.full(size, VOID, marks.dtype)
    small[y * size[0] // marks.shape[0], x * size[1] // marks.shape[1]] = marks[y, x]
    return small


def resize_bilinear(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Values (K, H, W) resized to `size`, bilinear (align_corners=False); means over areas where they shrink."""
    if values.shape[1:] == tuple(size) or len(values) == 0:
        return np.zeros((0, *size), np.float32) if len(values) == 0 else values
    how = {"mode": "area"} if size[0] < values.shape[1] else {"mode": "bilinear", "align_corners": False}
    return F.interpolate(torch.from_numpy(values)[None], size, **how)[0].numpy()


def aligned_side(side: int, stride: int, least: int = 1) -> int:
    """`least`, or the next multiple of `stride`, and one, that holds a longer side: there, the corners of the features
    of a network lie on the corners of its image."""
    return least if side <= least else 1 + -(-(side - 1) // stride) * stride


def aligned_taps(source: int, target: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """What bilinear resizing of an axis with corners on corners reads: for `target` places a pixel of `source` and its
    weight (float64), once where all places are pixels, else twice."""
    places = torch.arange(target, device=device) * (source - 1)
    steps = max(target - 1, 1)
    first, rest = places // steps, (places % steps).double() / steps
    taps = [(first, 1 - rest), ((first + 1).clamp(max=source - 1), rest)]
    return taps if rest.any() else taps[:1]


def resize_labels_by_majority(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """A batch of label maps (N, H, W) uint8, resized to `size` (h, w): the label that has more than half of what
    corner-aligned bilinear resizing reads, void where none has."""
    rows, columns = (aligned_taps(*sides, labels.device) for sides in zip(labels.shape[-2:], size, strict=True))
    taps = [
        (labels[..., row, :][..., column], torch.outer(row_weight, column_weight))
        for row, row_weight in rows
        for column, column_weight in columns
    ]
    result = torch.full_like(taps[0][0], VOID)
    for label, _ in taps:
        share = torch.stack([weight * (other == label) for other, weight in taps]).sum(0)
        result = torch.where(share > 0.5, label, result)
    return result
