"""AffinityNet's random walk (stride 8, 64 steps, 21 maps): our sparse steps against dense squarings.

    python benchmarks/random_walk_affinitynet.py [--size 375 500] [--repeats 5] [--threads 2]

The dense side does as the original: the affinities of AffinityNet's pairs are scattered into an N × N matrix, which is
raised to the power of β, normalised by columns and squared 6 times. Both sides start from given affinities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import measure
from weakseg.ops.randomwalk import lopsided_affinities, pair_offsets, random_walk

MAPS, RADIUS, BETA, LOG2_STEPS = 21, 5, 8, 6


def dense_walk(maps: torch.Tensor, affinities: torch.Tensor) -> torch.Tensor:
    height, width = maps.shape[-2:]
    margin = RADIUS - 1
    first = torch.arange(height * width).reshape(height, width)[:-margin, margin:-margin].flatten()
    matrix = torch.eye(height * width)
    for row, (dy, dx) in zip(affinities, pair_offsets(RADIUS), strict=True):
        second = first + dy * width + dx
        matrix[first, second] = row
        matrix[second, first] = row
    transition = matrix**BETA
    transition = transition / transition.sum(0, keepdim=True)
    for _ in range(LOG2_STEPS):
        transition = transition @ transition
    return (maps.flatten(1) @ transition).reshape(maps.shape)


def floor(maps: int, steps: int, size: measure.Size) -> Callable[[float], str]:
    """Each step takes the difference to each neighbour times its weight: 3 operations, on one thread."""
    operations = 3 * 2 * len(pair_offsets(RADIUS)) * maps * steps * size[0] * size[1]
    return lambda seconds: (
        f"{operations / 1e9:.2f} GFLOP at {operations / seconds / 1e9:.1f} GFLOP/s with one thread; a product of "
        f"matrices alone reaches {measure.matrix_rate():.0f} with {torch.get_num_threads()}"
    )


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(MAPS, *size, generator=generator)
    pairs = (size[0] - RADIUS + 1) * (size[1] - 2 * RADIUS + 2)
    affinities = torch.rand(len(pair_offsets(RADIUS)), pairs, generator=generator)

    def ours() -> torch.Tensor:
        return random_walk(maps, lopsided_affinities(affinities, size), beta=BETA, steps=2**LOG2_STEPS)

    limit = floor(MAPS, 2**LOG2_STEPS, size)
    comparison = measure.Comparison(ours, lambda: dense_walk(maps, affinities), target=30, floor=limit)
    return {"AffinityNet walk, 64 steps": comparison}


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=8, tolerance=1e-4, threads=2)
