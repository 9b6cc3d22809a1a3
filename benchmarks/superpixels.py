"""Merging superpixels, 342 into 64: the Gram matrix against the plain form with a one-hot table.

    python benchmarks/superpixels.py [--size 375 500] [--repeats 5] [--threads 1]

The plain form does as the original: a table says of every segment and pixel whether it belongs, the sizes are counted
in it for each merge, and the similarities of a merged segment are computed from its feature of 512 numbers. Both sides
must give the same map.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

import measure
from weakseg.ops.superpixels import merge_segments

BLOCKS, CHANNELS, COUNT = (18, 19), 512, 64


def blocks(size: measure.Size) -> npt.NDArray[np.int32]:
    """Ids (H, W) of rectangles, as many as segments of a photograph; fewer where there are not enough pixels."""
    rows, columns = (min(blocks, side) for blocks, side in zip(BLOCKS, size, strict=True))
    row, column = np.arange(size[0]) * rows // size[0], np.arange(size[1]) * columns // size[1]
    return (row[:, None] * columns + column).astype(np.int32)


def plainly_merged(ids: npt.NDArray[np.int32], features: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    vectors = features.astype(np.float64)
    members = (ids.ravel() == np.arange(len(features))[:, None]).astype(np.float32)
    similarity = np.full((len(vectors), len(vectors)), -np.inf, np.float32)

    alive = np.ones(len(vectors), bool)

    def compare(i: int, sizes: npt.NDArray[np.float32]) -> None:
        cosines = vectors @ vectors[i] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[i])
        similarity[i] = similarity[:, i] = np.where(alive, cosines + 1 - (sizes + sizes[i]) / ids.size, -np.inf)
        similarity[i, i] = -np.inf

    sizes = members.sum(1)
    for i in range(len(vectors)):
        compare(i, sizes)
    while alive.sum() > count:
        i, j = sorted(np.unravel_index(similarity.argmax(), similarity.shape))
        vectors[i] = (vectors[i] * sizes[i] + vectors[j] * sizes[j]) / (sizes[i] + sizes[j])
        members[i] += members[j]
        members[j] = 0
        alive[j] = False
        similarity[j] = similarity[:, j] = -np.inf
        sizes = members.sum(1)
        compare(i, sizes)
    return members[alive].argmax(0).reshape(ids.shape)


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    ids = blocks(size)
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=(ids.max() + 1, CHANNELS)), 0).astype(np.float32)
    return {
        "superpixel merging": measure.Comparison(
            lambda: torch.from_numpy(merge_segments(ids, features, COUNT).ids),
            lambda: torch.from_numpy(plainly_merged(ids, features, COUNT)),
            baseline_repeats=1,
            target=50,
            memory_limit=60 * 2**20 / 1e6,
        )
    }


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=1, tolerance=0)
