"""Pairs of nearby pixels as AffinityNet and IRNet learn from them, one offset after the other.

No tensor of all pairs, let alone of all points of all paths, is ever built: the first and the second pixels of the
pairs of one offset are two views of the same array.

The pairs are those whose first pixel has all its partners within the map: with R = radius - 1, it is not in the R last
rows, the R first or the R last columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from weakseg.labels import BACKGROUND, VOID
from weakseg.ops.randomwalk import pair_offsets, path


class Pairs(NamedTuple):
    """Which pairs of pixels are learned from, and as what: three bool tensors of one shape."""

    background: Tensor
    foreground: Tensor
    different: Tensor


def shifted(array: Tensor, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For every offset of `pair_offsets(radius)` two views (…, h - R, w - 2R) of an array (…, h, w): the first and the
    second pixels of the pairs. They are empty where the map is too small."""
    reach = max(radius - 1, 0)
    rows, columns = max(array.shape[-2] - reach, 0), max(array.shape[-1] - 2 * reach, 0)
    first = array[..., :rows, reach : reach + columns]
    for dy, dx in pair_offsets(radius):
        yield first, array[..., dy : dy + rows, reach + dx : reach + dx + columns]


def kinds_of_pairs(first: Tensor, second: Tensor) -> Pairs:
    """What pairs of labels teach: both background, both of one class, or different; none of these with void."""
    known, equal = (first != VOID) & (second != VOID), first == second
    background = first == BACKGROUND
    return Pairs(equal & background, known & equal & ~background, known & ~equal)


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
