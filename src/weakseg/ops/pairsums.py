"""The sums over pairs of pixels that IRNet's losses are made of, and their gradients.

J. Ahn, S. Cho, S. Kwak, *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations*, CVPR 2019
(arXiv 1904.05044), sections 3 and 4.2. Pairs are those of `ops.pairs`. Offset by offset, the strongest boundary on the
paths of all pairs is a running maximum; sums and their gradients, which are maps, grow on the way, and nothing as large
as all pairs is ever kept. On the CPU that is a compiled loop, row by row; on other devices it is done with views of
whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weakseg.labels import BACKGROUND, VOID
from weakseg.ops.compiled import compiled
from weakseg.ops.pairs import kinds_of_pairs, shifted
from weakseg.ops.randomwalk import pair_offsets, path

EPSILON = 1e-5


class PairSums(NamedTuple):
    """Sums over the pairs of N images, with affinities a = 1 - max of the boundary B on the path from i to j:

        sums[0], sums[1]    Σ -log(a + ε) over pairs of background, and of one class
        sums[2]             Σ -log(1 + ε - a) over pairs of two labels
        sums[3]             Σ |D_i - D_j - (j - i)| over pairs of one class and over y, x
        sums[4]             Σ |D_i - D_j| over pairs of background and over y, x

    `sums` (5,) float64; `ops.pairs.count_pairs` tells how many pairs there are. `to_boundary` (3, N, h, w) and
    `to_field` (2, N, 2, h, w) are the derivatives of the first three sums by B and of the last two by D. Of equal
    boundaries on a path, the last one in reading order has the derivative.
    """

    sums: Tensor
    to_boundary: Tensor
    to_field: Tensor

    @classmethod
    def zeros(cls, boundary: Tensor, field: Tensor) -> Self:
        return cls(
            boundary.new_zeros(5, dtype=torch.float64),
            boundary.new_zeros(3, *boundary.shape),
            field.new_zeros(2, *field.shape),
        )


def pair_sums(boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> PairSums:
    """The sums for boundaries (N, h, w) in [0, 1], displacements (N, 2, h, w), (y, x), and labels (N, h, w) uint8, 0
    background and 255 void, for pairs less than `radius` cells apart. Boundaries and displacements are float32."""
    boundary, field, labels = boundary.detach().contiguous(), field.detach().contiguous(), labels.contiguous()
    form = _row_by_row if boundary.device.type == "cpu" else _offset_by_offset
    return form(boundary, field, labels, radius)


# Compiled -------------------------------------------------------------------------------------------------------------


class _Paths(NamedTuple):
    """Offsets (P, 2) of pairs, and the points (Q, 2) of their paths one after the other: those of offset p are
    `points[starts[p] : starts[p + 1]]`. All are (y, x)."""

    offsets: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    points: npt.NDArray[np.int64]

    @classmethod
    @cache
    def of(cls, radius: int) -> Self:
        paths = [path(*offset) for offset in pair_offsets(radius)]
        points = [point for on_path in paths for point in on_path]
        return cls(
            np.array(pair_offsets(radius), np.int64).reshape(-1, 2),
            np.cumsum([0, *map(len, paths)], dtype=np.int64),
            np.array(points, np.int64).reshape(-1, 2),
        )


def _row_by_row(boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> PairSums:
    found = PairSums.zeros(boundary, field)
    sums, to_boundary, to_field = (array.numpy() for array in found)
    for n, image in enumerate(zip(boundary.numpy(), field.numpy(), labels.numpy(), strict=True)):
        _add_pairs(*image, max(radius - 1, 0), _Paths.of(radius), sums, to_boundary[:, n], to_field[:, n])
    return found


@compiled()
def _add_pairs(
    boundary: Any,
    field: Any,
    labels: Any,
    reach: Any,
    paths: Any,
    sums: Any,
    to_boundary: Any,
    to_field: Any,
) -> None:
    """Add the pairs of one image. A row of first pixels meets all offsets while its surroundings are in the cache."""
    offsets, starts, points = paths
    epsilon, one = np.float32(EPSILON), np.float32(1)
    height, width = boundary.shape
    columns = max(width - 2 * reach, 0)
    strongest, place = np.empty(columns, np.float32), np.empty(columns, np.int32)
    for y in range(height - reach):
        for p in range(len(offsets)):
            dy, dx = offsets[p]
            _find_strongest(boundary, y, reach, points[starts[p] : starts[p + 1]], strongest, place)
            for k in range(columns):
                x = reach + k
                first, second = labels[y, x], labels[y + dy, x + dx]
                if first == VOID or second == VOID:
                    continue
                affinity = one - strongest[k]
                py, px = place[k] // width, place[k] % width
                if first != second:
                    chance = (one + epsilon) - affinity
                    sums[2] -= math.log(chance)
                    to_boundary[2, py, px] -= one / chance
                    continue
                chance = affinity + epsilon
                thing = int(first != BACKGROUND)
                sums[thing] -= math.log(chance)
                to_boundary[thing, py, px] += one / chance
                for axis in range(2):
                    error = field[axis, y, x] - field[axis, y + dy, x + dx]
                    if thing:
                        error -= np.float32(offsets[p, axis])
                    sums[4 - thing] += abs(error)
                    step = np.sign(error)
                    to_field[1 - thing, axis, y, x] += step
                    to_field[1 - thing, axis, y + dy, x + dx] -= step


@compiled(inner=True)
def _find_strongest(boundary: Any, y: Any, left: Any, points: Any, strongest: Any, place: Any) -> None:
    """The strongest boundary on each path that starts in row `y`, from column `left` on, and its place in the image."""
    columns, width = len(strongest), boundary.shape[1]
    strongest[:] = -1
    for py, px in points:
        start = left + px
        here, first_place = boundary[y + py, start : start + columns], np.int32((y + py) * width + start)
        for k in range(columns):
            larger = here[k] >= strongest[k]
            strongest[k] = here[k] if larger else strongest[k]
            place[k] = first_place + np.int32(k) if larger else place[k]


# Views of whole maps --------------------------------------------------------------------------------------------------


def _offset_by_offset(boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> PairSums:
    found = PairSums.zeros(boundary, field)
    for offset, (strongest, place), ends, vectors, gradients in zip(
        pair_offsets(radius),
        strongest_on_paths(boundary, radius),
        shifted(labels, radius),
        shifted(field, radius),
        shifted(found.to_field, radius),
        strict=True,
    ):
        kinds = kinds_of_pairs(*ends)
        _add_affinities(found.sums[:3], found.to_boundary, strongest, place, torch.stack(kinds))
        _add_displacements(
            found.sums[3:], gradients, vectors, offset, torch.stack([kinds.foreground, kinds.background])
        )
    return found


def strongest_on_paths(boundary: Tensor, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For every offset of `pair_offsets(radius)` the strongest boundary on each pair's path (…, h - R, w - 2R), and its
    place in the flattened `boundary` (…, h, w), float32 in [0, 1] and contiguous. Of equals, the last place counts."""
    reach = max(radius - 1, 0)
    rows, columns = max(boundary.shape[-2] - reach, 0), max(boundary.shape[-1] - 2 * reach, 0)
    # The bits of numbers ≥ 0 are in the order of the numbers, so one maximum finds both the value and its place.
    places = torch.arange(boundary.numel(), device=boundary.device).view_as(boundary)
    keys = boundary.view(torch.int32).long() << 32 | places
    for dy, dx in pair_offsets(radius):
        largest: Tensor | None = None
        for y, x in path(dy, dx):
            here = keys[..., y : y + rows, reach + x : reach + x + columns]
            largest = here.clone() if largest is None else torch.maximum(largest, here, out=largest)
        assert largest is not None
        yield (largest >> 32).int().view(torch.float32), largest & 0xFFFFFFFF


def _add_affinities(sums: Tensor, to_boundary: Tensor, strongest: Tensor, place: Tensor, kinds: Tensor) -> None:
    """Add one offset's pairs to the sums (3,) and their gradients (3, N, h, w); `kinds` is (3, N, rows, columns)."""
    affinity = 1 - strongest
    alike, unlike = affinity + EPSILON, (1 + EPSILON) - affinity
    chances = torch.stack([alike, alike, unlike])
    sums -= (chances.log() * kinds).sum((1, 2, 3), dtype=torch.float64)
    slopes = torch.stack([1 / alike, 1 / alike, -1 / unlike]) * kinds
    # A pair is of one kind at most: one addition serves all three maps.
    cells = to_boundary[0].numel()
    to_boundary.view(-1).index_add_(
        0, (place + cells * (kinds[1] + 2 * kinds[2].long())).flatten(), slopes.sum(0).flatten()
    )


def _add_displacements(
    sums: Tensor,
    gradients: tuple[Tensor, Tensor],
    vectors: tuple[Tensor, Tensor],
    offset: tuple[int, int],
    kinds: Tensor,
) -> None:
    """Add one offset's pairs to the sums (2,) over pairs of things and of background, and to the views of their
    gradients (2, N, 2, rows, columns)."""
    first, second = vectors
    path = first.new_tensor(offset)[:, None, None]
    errors = torch.stack([first - second - path, first - second])
    kinds = kinds[:, :, None]
    sums += (errors.abs() * kinds).sum((1, 2, 3, 4), dtype=torch.float64)
    steps = errors.sign_() * kinds
    to_first, to_second = gradients
    to_first += steps
    to_second -= steps
