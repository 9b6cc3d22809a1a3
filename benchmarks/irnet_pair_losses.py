"""IRNet's pair losses and their gradients (radius 10): one offset after the other against all pairs gathered at once.

    python benchmarks/irnet_pair_losses.py [--size 512 512] [--repeats 5] [--threads 1]

The gathering side does as the original: boundaries are gathered along all paths through index tensors, which it is
given ready-made (223 MB at this size, not counted as its memory), their maxima pooled, and the losses formed from
tensors of all pairs. Both sides give the gradients of the whole loss, over their largest values; labels are of regions,
a third of them void.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

import measure
from weakseg.methods.base import means
from weakseg.methods.irnet import pair_losses
from weakseg.ops.pairs import count_pairs
from weakseg.ops.pairsums import EPSILON
from weakseg.ops.randomwalk import pair_offsets, path

IMAGES, RADIUS = 1, 10
Losses = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@cache
def index(size: measure.Size) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The first pixels of all pairs, and for each offset the points of the path from each of them."""
    height, width = size
    reach = RADIUS - 1
    first = torch.arange(height * width).reshape(size)[: height - reach, reach : width - reach].flatten()
    paths = [torch.stack([first + y * width + x for y, x in path(*offset)]) for offset in pair_offsets(RADIUS)]
    return first, paths


def gathered(boundary: torch.Tensor, field: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    height, width = boundary.shape[1:]
    first, paths = index((height, width))
    flat = boundary.flatten(1)
    strongest = []
    for points in paths:
        along = flat.index_select(1, points.flatten()).view(len(flat), 1, *points.shape)
        strongest.append(F.max_pool2d(along, (len(points), 1)).flatten(1))
    affinity = 1 - torch.stack(strongest, 1)
    offsets = torch.tensor(pair_offsets(RADIUS))
    second = first + (offsets @ torch.tensor([width, 1]))[:, None]
    ours, theirs = labels.flatten(1)[:, first][:, None], labels.flatten(1)[:, second]
    known, equal = (ours != 255) & (theirs != 255), ours == theirs
    background, foreground, different = known & equal & (ours == 0), known & equal & (ours > 0), known & ~equal
    alike, unlike = -torch.log(affinity + EPSILON), -torch.log(1 + EPSILON - affinity)
    moved = field.flatten(2)[:, :, first][:, :, None] - field.flatten(2)[:, :, second]
    away, still = (moved - offsets.T[:, :, None]).abs().sum(1), moved.abs().sum(1)

    def mean(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return (values * chosen).sum() / (chosen.sum() + EPSILON)

    affinities = mean(alike, background) / 4 + mean(alike, foreground) / 4 + mean(unlike, different) / 2
    return affinities + mean(away, foreground) / 4 + mean(still, background) / 4


def offset_by_offset(boundary: torch.Tensor, field: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    background, foreground, different = count_pairs(labels, RADIUS)
    counts = {
        "boundary_background": background,
        "boundary_foreground": foreground,
        "boundary_between": different,
        "displacement_foreground": 2 * foreground,
        "displacement_background": 2 * background,
    }
    return torch.stack(list(means(pair_losses(boundary, field, labels, RADIUS), counts).values())).sum()


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    size = max(size[0], 2 * RADIUS), max(size[1], 2 * RADIUS)  # else there are no pairs
    generator = torch.Generator().manual_seed(0)
    boundary = torch.rand(IMAGES, *size, generator=generator).requires_grad_()
    field = torch.randn(IMAGES, 2, *size, generator=generator).requires_grad_()
    regions = torch.randint(3, (IMAGES, 1, 5, 5), generator=generator).float()
    labels = F.interpolate(regions, size).to(torch.uint8)[:, 0]
    labels[labels == 2] = 255
    index(size)

    def gradients(losses: Losses) -> torch.Tensor:
        found = torch.autograd.grad(losses(boundary, field, labels), (boundary, field))
        return torch.cat([(gradient / gradient.abs().max()).flatten() for gradient in found])

    return {
        "losses and gradients": measure.Comparison(lambda: gradients(offset_by_offset), lambda: gradients(gathered)),
    }


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=4, tolerance=1e-3, size=(512, 512))
