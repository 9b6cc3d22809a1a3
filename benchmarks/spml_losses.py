"""SPML's contrastive losses and gradients, by blocks against dense; spherical k-means (stride 4, 64 channels).

    python benchmarks/spml_losses.py [--size 512 512] [--repeats 5] [--threads 1]

The losses are annotation and cooccurrence of the pixels of one image, against the 4800 prototypes of 16. The dense side
masks a matrix of all pixels and prototypes, and autograd keeps what it needs. K-means starts from 6 × 6 cells and
takes ten steps; on the other side sums are scattered value by value, as in the original.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import measure
from weakseg.methods.spml.clustering import grid_labels, normalised, places, prototypes, spherical_kmeans
from weakseg.methods.spml.losses import contrastive_loss

DIMENSIONS, CLASSES, SEGMENTS, GRID = 64, 21, 4800, (6, 6)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def dense_loss(pixels: Tensor, known: Tensor, own: Tensor, same: Tensor, group: Tensor, concentration: float) -> Tensor:
    s, alike = (concentration * (pixels @ known.T)).exp(), same[group]
    others = alike.scatter(1, own[:, None], False)
    alone = ~others.any(1)
    positive = (s * others).sum(1) + s.gather(1, own[:, None])[:, 0] * alone
    return -(positive / (positive + (s * ~alike).sum(1))).log().sum()


def scattered_kmeans(vectors: Tensor, start: Tensor, clusters: int) -> Tensor:
    labels = start
    for _ in range(10):
        sums = torch.zeros(clusters, vectors.shape[1])
        sums.scatter_add_(0, labels[:, None].expand_as(vectors), vectors)
        labels = torch.mm(vectors, normalised(sums).t()).argmax(1)
    return labels


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    generator = torch.Generator().manual_seed(0)
    count, segments = size[0] * size[1], min(SEGMENTS, size[0] * size[1])
    pixels = normalised(torch.randn(count, DIMENSIONS, generator=generator)).requires_grad_()
    known = normalised(torch.randn(segments, DIMENSIONS, generator=generator)).requires_grad_()
    own = torch.randint(segments, (count,), generator=generator)
    label = torch.randint(CLASSES, (segments,), generator=generator)
    tags = torch.rand(1, segments, generator=generator) < 0.2
    of_label = (torch.arange(CLASSES)[:, None] == label, label[own], 6.0)
    of_image = (tags, torch.zeros(count, dtype=torch.int64), 8.0)

    def gradients(loss: Loss) -> Tensor:
        total = loss(pixels, known, own, *of_label) + loss(pixels, known, own, *of_image)
        return torch.cat([(g / g.abs().max()).flatten() for g in torch.autograd.grad(total, (pixels, known))])

    # Blobs, so that no rounding decides where a pixel goes.
    centres = torch.randn(50, DIMENSIONS, generator=generator)
    noise = torch.randn(count, DIMENSIONS, generator=generator)
    embedded = normalised(centres[torch.randint(50, (count,), generator=generator)] + 0.3 * noise)
    vectors = normalised(torch.cat([embedded, places(size).flatten(0, 1)], dim=1))
    start = grid_labels(GRID, size).flatten()
    clusters = int(start.max()) + 1

    def centroids(labels: Tensor) -> Tensor:
        return prototypes(vectors, labels, clusters)

    return {
        "losses and gradients of one image": measure.Comparison(
            lambda: gradients(contrastive_loss), lambda: gradients(dense_loss), target=1, memory_target=8
        ),
        "k-means of one image": measure.Comparison(
            lambda: centroids(spherical_kmeans(vectors, start, clusters)),
            lambda: centroids(scattered_kmeans(vectors, start, clusters)),
            target=3,
        ),
    }


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=4, tolerance=1e-3, size=(512, 512))
