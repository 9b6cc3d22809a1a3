"""Pairs of nearby pixels as AffinityNet and IRNet learn from them, one offset after the other.

No tensor of all pairs, let alone of all points of all paths, is ever built: the first and the second pixels of the
pairs of one offset are two views of the same array.

The pairs are those whose first pixel has all its partners within the map: with R = radius - 1, it is not in the R last
rows, the R first or the R last columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weakseg.labels import BACKGROUND, VOID
from weakseg.ops.compiled import compiled
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


def count_pairs(labels: Tensor, radius: int) -> Tensor:
    """How many pairs of each kind (`Pairs`, in its order) labels (N, h, w) uint8, 255 void, have: (3,) int64."""
    if labels.device.type == "cpu":
        counts = np.zeros(3, np.int64)
        offsets = np.array(pair_offsets(radius), np.int64).reshape(-1, 2)
        _count(labels.numpy(), max(radius - 1, 0), offsets, counts)
        return torch.from_numpy(counts)
    total = torch.zeros(3, dtype=torch.int64, device=labels.device)
    for first, second in shifted(labels, radius):
        total += torch.stack([kind.sum() for kind in kinds_of_pairs(first, second)])
    return total


@compiled()
def _count(labels: Any, reach: Any, offsets: Any, counts: Any) -> None:
    """Add the pairs of all images to the counts of background, foreground and different pairs."""
    images, height, width = labels.shape
    for n in range(images):
        for y in range(height - reach):
            for x in range(reach, width - reach):
                first = labels[n, y, x]
                if first == VOID:
                    continue
                for p in range(len(offsets)):
                    second = labels[n, y + offsets[p, 0], x + offsets[p, 1]]
                    if second == VOID:
                        continue
                    if first != second:
                        counts[2] += 1
                    else:
                        counts[int(first != BACKGROUND)] += 1
