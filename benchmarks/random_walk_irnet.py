"""IRNet's random walk (stride 4, 256 steps, 3 classes): our sparse steps against dense squarings.

    python benchmarks/random_walk_irnet.py [--size 375 500] [--repeats 5] [--threads 2]

The dense side does as the original: pairs of a map that is padded by the radius at three sides, gathered along their
paths through an index of all path points, scattered into an N × N matrix, whose padding is cut off, and which is
raised to the power of β, normalised and squared 8 times. At 375 × 500 that takes 26 TFLOP, minutes per image, and is
done once, with all squarings; its memory, which the first squaring determines, is measured with one. A smaller --size
shows the same in seconds. The last line compares the Chebyshev form of ours with its plain form.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

import measure
from random_walk_affinitynet import floor
from weakseg.ops.randomwalk import boundary_walk, chebyshev_coefficients, pair_offsets, path

CLASSES, RADIUS, BETA, LOG2_STEPS = 3, 5, 10, 8


def dense_walk(maps: torch.Tensor, boundary: torch.Tensor, squarings: int = LOG2_STEPS) -> torch.Tensor:
    height = len(boundary)
    padded = F.pad(boundary, (RADIUS, RADIUS, 0, RADIUS), value=1.0)
    rows, columns = padded.shape
    index = torch.arange(rows * columns).reshape(rows, columns)
    margin = RADIUS - 1
    first = index[:-margin, margin:-margin].flatten()
    matrix = torch.eye(rows * columns)
    for dy, dx in pair_offsets(RADIUS):
        on_path = torch.stack([first + y * columns + x for y, x in path(dy, dx)])
        affinities = 1 - padded.flatten()[on_path].amax(0)
        second = first + dy * columns + dx
        matrix[first, second] = affinities
        matrix[second, first] = affinities
    real = index[:height, RADIUS:-RADIUS].flatten()
    transition = matrix[real][:, real] ** BETA
    transition = transition / transition.sum(0, keepdim=True)
    for _ in range(squarings):
        transition = transition @ transition
    return ((maps * (1 - boundary)).flatten(1) @ transition).reshape(maps.shape)


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(CLASSES, *size, generator=generator)
    boundary = torch.rand(size, generator=generator) ** 4

    def ours() -> torch.Tensor:
        return boundary_walk(maps, boundary)

    return {
        "IRNet walk, 256 steps": measure.Comparison(
            ours,
            lambda: dense_walk(maps, boundary),
            baseline_repeats=1,
            baseline_peak=lambda: dense_walk(maps, boundary, squarings=1),
            target=100,
            memory_limit=50,
            floor=floor(CLASSES, 2**LOG2_STEPS, size),
        ),
        "IRNet walk, Chebyshev form against 256 steps of ours": measure.Comparison(
            lambda: boundary_walk(maps, boundary, chebyshev=True),
            ours,
            floor=floor(CLASSES, len(chebyshev_coefficients(2**LOG2_STEPS)) - 1, size),
        ),
    }


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=4, tolerance=1e-4, threads=2)
