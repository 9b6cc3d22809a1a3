"""SPML's contrastive losses with their gradients, block by block, against a matrix of all pixels and prototypes; and
spherical k-means.

    python benchmarks/spml_losses.py [--side 128] [--images 4] [--segments 4800] [--repeats 3] [--threads 1]

The losses are annotation and cooccurrence, of a device's images with embeddings of `side` pixels, 64 dimensions, against
the prototypes of all devices. The dense side masks the matrix and lets autograd keep what it needs. K-means starts from
6 × 6 cells; its peer adds up vectors pixel by pixel, as the original does.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor

import measure
from weakseg.methods.spml.clustering import grid_labels, normalised, places, spherical_kmeans
from weakseg.methods.spml.losses import contrastive_loss

DIMENSIONS, CLASSES, LEAST_MEMORY, LEAST_KMEANS = 64, 21, 8, 3


class Step:
    """Random pixels and prototypes of one device, and which of them are the same in both losses."""

    def __init__(self, side: int, images: int, segments: int) -> None:
        generator = torch.Generator().manual_seed(0)
        count = images * side * side
        self.pixels = normalised(torch.randn(count, DIMENSIONS, generator=generator))
        self.prototypes = normalised(torch.randn(segments, DIMENSIONS, generator=generator))
        self.own = torch.randint(segments, (count,), generator=generator)
        self.label = torch.randint(CLASSES, (segments,), generator=generator)
        self.image = torch.arange(images).repeat_interleave(side * side)
        self.tags = torch.rand(images, segments, generator=generator) < 0.2

    def relations(self) -> list[tuple[Tensor, Tensor, float]]:
        """Table, group of each pixel, concentration."""
        by_label = torch.arange(CLASSES)[:, None] == self.label
        return [(by_label, self.label[self.own], 6.0), (self.tags, self.image, 8.0)]

    def streamed(self, pixels: Tensor, prototypes: Tensor) -> Tensor:
        parts = [contrastive_loss(pixels, prototypes, self.own, *relation) for relation in self.relations()]
        return torch.stack(parts).sum()

    def dense(self, pixels: Tensor, prototypes: Tensor) -> Tensor:
        similarity = pixels @ prototypes.T
        total = pixels.new_zeros(())
        for table, group, concentration in self.relations():
            s, same = (concentration * similarity).exp(), table[group]
            others = same.scatter(1, self.own[:, None], False)
            lonely = ~others.any(1)
            positive = (s * others).sum(1) + s.gather(1, self.own[:, None])[:, 0] * lonely
            total = total - (positive / (positive + (s * ~same).sum(1))).log().sum()
        return total

    def gradient(self, streamed: bool) -> list[Tensor]:
        leaves = [self.pixels.clone().requires_grad_(), self.prototypes.clone().requires_grad_()]
        (self.streamed if streamed else self.dense)(*leaves).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]


def pixelwise_kmeans(vectors: Tensor, start: Tensor, clusters: int) -> Tensor:
    labels = start
    for _ in range(10):
        sums = torch.zeros(clusters, vectors.shape[1]).scatter_add_(
            0, labels[:, None].expand_as(vectors), vectors
        )
        labels = torch.mm(vectors, normalised(sums).t()).argmax(1)
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=measure.usually(128, 8))
    parser.add_argument("--images", type=int, default=measure.usually(4, 2))
    parser.add_argument("--segments", type=int, default=measure.usually(4800, 20))
    parser.add_argument("--repeats", type=int, default=measure.usually(3, 1))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=("streamed", "dense"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = (arguments.side, arguments.images, arguments.segments)
