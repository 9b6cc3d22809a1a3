"""SPML without a classifier: the labels of the most similar segments of a memory.

Hwang et al., "SegSort: Segmentation by Discriminative Sorting of Segments", ICCV 2019 (arXiv 1910.06962), section 3.4;
Ke, Hwang, Yu, ICLR 2021 (arXiv 2105.00957), section 4. A memory has the prototypes of the segments of labelled images,
each with the label of most of its pixels. A segment of another image takes the labels of the k most similar ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from weakseg.methods.spml.clustering import grid_labels, normalised, numbered, places, prototypes, spherical_kmeans
from weakseg.settings import Settings

CHUNK = 1 << 21
"""So many similarities of segments and memory are held at once."""


class RetrievalOptions(Settings):
    """Defaults are the paper's for the pseudo-labels of tags (step B)."""

    scales: tuple[float, ...] = Field(
        default=(0.5, 1.0, 1.5, 2.0), min_length=1, description="sizes of the image that is labelled, 1 is its own"
    )
    mirror: bool = Field(default=True, description="use the mirror image, too")
    memory_scales: tuple[float, ...] = Field(
        default=(0.5, 1.0, 1.5), min_length=1, description="sizes of the images that are remembered"
    )
    grid: tuple[PositiveInt, PositiveInt] = Field(
        default=(12, 12), description="rows and columns that k-means starts from"
    )
    neighbours: PositiveInt = Field(default=20, description="segments whose labels are taken")


class LabelledSegments(NamedTuple):
    """`prototypes` (M, D), of length 1, and their `labels` (M,), int64."""

    prototypes: Tensor
    labels: Tensor

    def of_classes(self, count: int) -> LabelledSegments:
        """Those with a label below `count`: neither unlabelled nor void."""
        kept = self.labels < count
        return LabelledSegments(self.prototypes[kept], self.labels[kept])


# Clusters of an image -------------------------------------------------------------------------------------------------


def image_clusters(
    embedding: Tensor, grid: tuple[int, int], iterations: int = 10, inside: tuple[int, int] | None = None
) -> Tensor:
    """The clusters (h, w) of an embedding (D, h, w), numbered without gaps from 0.

    K-means of the normalised embedding beside the places, from a uniform grid of rows and columns. Of an image that was
    padded at its right and its bottom, `inside` (h', w') is what it fills: places and grid are those of the whole, only
    the pixels inside are clustered and returned.
    """
    height, width = (int(side) for side in embedding.shape[1:])
    rows, columns = inside or (height, width)
    pixels = normalised(embedding.permute(1, 2, 0))
    vectors = normalised(torch.cat([pixels, places((height, width), embedding.device).to(pixels)], dim=-1))
    cells = grid_labels(grid, (height, width), embedding.device)
    present, start = cells.unique(return_inverse=True)
    found = spherical_kmeans(
        vectors[:rows, :columns].flatten(0, 1), start[:rows, :columns].flatten(), len(present), iterations
    )
    return numbered(found)[0].reshape(rows, columns)


def majority(labels: Tensor, cluster: Tensor, count: int) -> Tensor:
    """The most frequent of labels (P,), 0 … 255, in each of `count` clusters (P,): the lowest of several, int64."""
    values = int(labels.max()) + 1 if len(labels) else 1
    return torch.bincount(cluster * values + labels, minlength=count * values).view(count, values).argmax(1)


def labelled_segments(embedding: Tensor, clusters: Tensor, labels: Tensor) -> LabelledSegments:
    """The prototypes of the `clusters` (h, w) of an embedding (D, h, w), each with the label of most of its pixels."""
    count = int(clusters.max()) + 1
    pixels, cluster = normalised(embedding.permute(1, 2, 0)).flatten(0, 1), clusters.flatten()
    return LabelledSegments(prototypes(pixels, cluster, count), majority(labels.flatten().long(), cluster, count))


# Retrieval ------------------------------------------------------------------------------------------------------------


def nearest(queries: Tensor, memory: Tensor, k: int = 20) -> Tensor:
    """The indices (Q, min(k, M)) of the rows of `memory` (M, D) whose dot products with `queries` (Q, D) are largest,
    in descending order.

    The memory is walked through in parts, so that Q × M similarities are never held, let alone sorted.
    """
    queries = queries.contiguous()
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    size = max(k, CHUNK // max(len(queries), 1))
    for first in range(0, len(memory), size):
        part = queries @ memory[first : first + size].T
        values, place = part.topk(min(k, part.shape[1]), dim=1)
        best, index = torch.cat([best, values], dim=1), torch.cat([index, place + first], dim=1)
        best, chosen = best.topk(min(k, best.shape[1]), dim=1)
        index = index.gather(1, chosen)
    return index


def label_shares(labels: Tensor, count: int) -> Tensor:
    """The share of each of `count` labels in rows of labels (Q, k): (Q, count), float32."""
    return F.one_hot(labels, count).float().mean(1)


def retrieved_shares(embedding: Tensor, clusters: Tensor, memory: LabelledSegments, count: int, k: int = 20) -> Tensor:
    """The shares (count, h, w) of labels among the `k` segments of a memory that are most similar to each pixel's
    cluster. `embedding` is (D, h, w); the memory's labels are below `count`."""
    queries = prototypes(
        normalised(embedding.permute(1, 2, 0)).flatten(0, 1), clusters.flatten(), int(clusters.max()) + 1
    )
    shares = label_shares(memory.labels[nearest(queries, memory.prototypes, k)], count)
    return shares[clusters].permute(2, 0, 1)
