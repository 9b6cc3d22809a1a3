"""Pairs of nearby pixels as AffinityNet and IRNet learn from them, one offset after the other.

No tensor of all pairs, let alone of all points of all paths, is ever built: the first and the second pixels of the
pairs of one offset are two views of the same array.

The pairs are those whose first pixel has all its partners within the map: with R = radius - 1, it is not in the R last
rows, the R first or the R last columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from weakseg.labels import BACKGROUND, VOID
from weakseg.ops.randomwalk import pair_offsets


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
