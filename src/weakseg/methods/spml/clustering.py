"""From embeddings to segments: local features, spherical k-means, the cut by labels and regions, prototypes.

Hwang et al., "SegSort: Segmentation by Discriminative Sorting of Segments", ICCV 2019 (arXiv 1910.06962), section 3.1;
sizes and orders are those of SPML's program.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.labels import VOID

LEAST_COLOUR = 1e-5
"""Differences of normalised colours that are smaller are those of rounding."""
CHUNK = 1 << 17
"""So many similarities of pixels and centroids are computed at once."""


def normalised(vectors: Tensor) -> Tensor:
    """Vectors (…, D) of length 1; those shorter than 1e-12 become shorter still."""
    return F.normalize(vectors, dim=-1, eps=1e-12)


# Local features -------------------------------------------------------------------------------------------------------


def places(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """y and x of every pixel of a map of a size (h, w), from -0.5 to 0.5: (h, w, 2)."""
    rows, columns = (torch.linspace(0, 1, side, device=device) - 0.5 for side in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)


def cone_kernel() -> Tensor:
    """The 5×5 weights that SPML's program filters colours with: the distance from the centre, over their sum."""
    distance = torch.arange(-2, 3).square()
    cone = (distance[:, None] + distance).sqrt()
    return cone / cone.sum()


def colours(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Filtered colours of normalised images (N, 3, H, W) at `size`: (N, h, w, 3), each channel of an image from -1 to 1
    around its mean; next to 0 where it has one value only."""
    kernel = cone_kernel().to(images).expand(images.shape[1], 1, -1, -1)
    padding = [max(0, 5 - side) for side in images.shape[-2:]]  # a smaller image has no place for the kernel
    images = F.pad(images, (0, padding[1], 0, padding[0]), mode="replicate")
    filtered = F.conv2d(images, kernel, groups=images.shape[1])
    centred = F.interpolate(filtered, size, mode="bilinear", align_corners=False)
    centred = centred - centred.mean((2, 3), keepdim=True)
    largest = centred.abs().amax((2, 3), keepdim=True)
    return (centred / largest.clamp(min=LEAST_COLOUR)).permute(0, 2, 3, 1)


def local_features(images: Tensor, size: tuple[int, int], *, with_colours: bool = False) -> Tensor:
    """What is known of the pixels of images (N, 3, H, W) without the network, at the size (h, w) of the embeddings:
    their places (N, h, w, 2) and, on request, their colours (N, h, w, 5)."""
    located = places(size, images.device).to(images.dtype).expand(len(images), -1, -1, -1)
    return torch.cat([located, colours(images, size)], dim=-1) if with_colours else located


# Spherical k-means ----------------------------------------------------------------------------------------------------


def grid_labels(grid: tuple[int, int], size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """A map (h, w) of the cells of a uniform grid of rows and columns, whose numbers may have gaps."""
    rows, columns = (
        torch.linspace(0, cells - 1, side, device=device).round().long() for cells, side in zip(grid, size, strict=True)
    )
    return rows[:, None] + (rows.max() + 1) * columns


def spherical_kmeans(vectors: Tensor, start: Tensor, clusters: int, iterations: int = 10) -> Tensor:
    """The cluster (P,) of each unit vector (P, D), from the clusters `start` (P,) on.

    A centroid is the normalised sum of its vectors, and a vector goes to the centroid of the largest dot product, the
    first of several. The centroid of an empty cluster is 0.
    """
    labels = start
    for _ in range(iterations):
        centroids = prototypes(vectors, labels, clusters).T.contiguous()
        labels = torch.cat([(part @ centroids).argmax(1) for part in vectors.split(max(1, CHUNK // clusters))])
    return labels


# Segments -------------------------------------------------------------------------------------------------------------


def resize_by_corner(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps (N, H, W) of whole numbers at `size`, int64: each pixel has the label of the source pixel that holds
    its upper left corner, as in SPML's program."""
    return F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()


def numbered(*keys: Tensor) -> tuple[Tensor, Tensor]:
    """Tuples of whole numbers, given as columns (P,), by their ascending order: the number (P,) of each and the tuples
    (S, len(keys)) that there are."""
    sizes = [int(key.max()) + 1 if len(key) else 1 for key in keys]
    combined = torch.zeros_like(keys[0], dtype=torch.int64)
    for key, size in zip(keys, sizes, strict=True):
        combined = combined * size + key
    known, ids = combined.unique(return_inverse=True)
    columns = []
    for size in reversed(sizes):
        columns.append(known % size)
        known = known // size
    return ids, torch.stack(columns[::-1], dim=1)


def segment_sums(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """The sums (count, D) of values (P, D) over their segments (P,)."""
    return values.new_zeros(count, values.shape[1]).index_add(0, segment, values)


def prototypes(vectors: Tensor, segment: Tensor, count: int) -> Tensor:
    """The normalised means (count, D) of vectors (P, D) over their segments (P,); 0 for those without any."""
    return normalised(segment_sums(vectors, segment, count))


class Segments(NamedTuple):
    """The pixels of a batch that take part, and its segments, each of one image, cluster, label and region.

    Of the P pixels: unit vectors `pixels` u (P, D), `located` v (P, D + L), their `segment` (P,). Of the S segments:
    `image`, `cluster`, `label`, `region`, int64 (S,).
    """

    pixels: Tensor
    located: Tensor
    segment: Tensor
    image: Tensor
    cluster: Tensor
    label: Tensor
    region: Tensor

    def prototypes(self) -> Tensor:
        """The segments' normalised means of u, (S, D)."""
        return prototypes(self.pixels, self.segment, len(self.image))

    def located_prototypes(self) -> Tensor:
        """The segments' normalised means of v, (S, D + L)."""
        return prototypes(self.located, self.segment, len(self.image))


def segments(
    embeddings: Tensor,
    local: Tensor,
    labels: Tensor,
    regions: Tensor,
    grid: tuple[int, int],
    iterations: int = 10,
    embedding_share: float = 1.0,
) -> Segments:
    """The segments of embeddings (N, D, h, w) with local features (N, h, w, L), labels and regions (N, H, W).

    Clusters of v, the normalised u and local features, are cut where labels or regions change. Pixels of label 255
    take no part. The v that are returned have u multiplied with `embedding_share`.
    """
    size = (int(embeddings.shape[-2]), int(embeddings.shape[-1]))
    labels, regions = resize_by_corner(labels, size), resize_by_corner(regions, size)
    taking_part = labels != VOID
    unit, local = normalised(embeddings.permute(0, 2, 3, 1))[taking_part], local[taking_part]
    image = torch.nonzero(taking_part)[:, 0]
    clusters = _clusters(normalised(torch.cat([unit, local], dim=1)).detach(), image, taking_part, grid, iterations)
    located = normalised(torch.cat([embedding_share * unit, local], dim=1))
    segment, kinds = numbered(image, clusters, labels[taking_part], regions[taking_part])
    return Segments(unit, located, segment, *kinds.unbind(1))


def _clusters(vectors: Tensor, image: Tensor, taking_part: Tensor, grid: tuple[int, int], iterations: int) -> Tensor:
    """The clusters (P,) of pixels with vectors (P, F), found in each image by itself."""
    cells = grid_labels(grid, (taking_part.shape[1], taking_part.shape[2]), vectors.device)
    present, start = cells.unique(return_inverse=True)
    parts = vectors.split(torch.bincount(image, minlength=len(taking_part)).tolist())
    return torch.cat(
        [
            spherical_kmeans(part, start[mask], len(present), iterations)
            for part, mask in zip(parts, taking_part, strict=True)
        ]
    )
