"""The dense CRF of many images at once, in torch: what `dense_crf` runs on CUDA devices.

The lattices are those of `permutohedral.py`, bit for bit, and the equations those of `densecrf_compiled.py`. The pixels
of all images stand one after the other, whatever their sizes; the number of the image is part of a vertex's key, so
that images share no vertex. Splatting and slicing are products with sparse matrices, whose sums have a fixed order.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weakseg.ops.crf_features import Image, bilateral_features, gaussian_features
from weakseg.ops.crf_parameters import CRFParameters, Scale
from weakseg.ops.crf_problem import Problem
from weakseg.ops.permutohedral import FloatArray, Lattice, Packing, coordinate_ranges, feature_scales

# How many numbers the largest arrays of a batch may hold. A pixel has its labels, and 18 entries of sparse matrices.
MAX_VALUES = 1 << 26
VALUES_OF_A_PIXEL = 18

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


def mean_field(
    images: Sequence[Image],
    problems: Sequence[Sequence[Problem]],
    parameters: CRFParameters,
    device: torch.device | str,
) -> list[list[FloatArray]]:
    """The marginals (R, N) of the problems of each image, at least one iteration."""
    results: list[list[FloatArray]] = []
    for batch in _batches(images, problems):
        results += _batch_mean_field(images[batch], problems[batch], parameters, torch.device(device))
    return results


def _batches(images: Sequence[Image], problems: Sequence[Sequence[Problem]]) -> Iterator[slice]:
    """As many images together as there should be memory for, at least one."""
    start, pixels, labels = 0, 0, 0
    for i, (image, of_image) in enumerate(zip(images, problems, strict=True)):
        pixels += image[..., 0].size
        labels = max(labels, len(of_image) * max((len(problem.unary) for problem in of_image), default=0))
        if i > start and pixels * (labels + VALUES_OF_A_PIXEL) > MAX_VALUES:
            yield slice(start, i)
            start, pixels = i, image[..., 0].size
    if images:
        yield slice(start, len(images))


@torch.no_grad()
def _batch_mean_field(
    images: Sequence[Image], problems: Sequence[Sequence[Problem]], parameters: CRFParameters, device: torch.device
) -> list[list[FloatArray]]:
    labels = _Labels.of([image[..., 0].size for image in images], problems, device)
    pixels = _Pixels(images, device)
    kernels = [
        pixels.kernel(parameters.gaussian_sxy, None, parameters.gaussian_weight),
        pixels.kernel(parameters.bilateral_sxy, parameters.bilateral_srgb, parameters.bilateral_weight),
    ]
    ones = torch.ones(len(labels.unary), 1, device=device)
    total = (kernels[0](ones) + kernels[1](ones))[..., None]  # what the messages of all labels of a pixel sum to
    marginals = (-labels.unary).softmax(-1)
    for _ in range(parameters.iterations):
        filtered = marginals[..., :-1].flatten(1)
        messages = (kernels[0](filtered) + kernels[1](filtered)).view_as(marginals[..., :-1])
        rest = total - messages.sum(-1, keepdim=True)
        marginals = (torch.cat([messages, rest], -1) * labels.share - labels.unary).softmax(-1)
    return labels.split(marginals, problems)


class _Labels(NamedTuple):
    """All pixels have as many problems (G) and rows (R) as the image with the most: others have impossible labels
    first. The last row of a problem always is a label, and costs no filtering."""

    unary: Tensor  # (N, G, R)
    share: Tensor  # (N, G, R), or a number: a label's share of its row, 1 / copies
    sizes: list[int]

    @classmethod
    def of(cls, sizes: list[int], problems: Sequence[Sequence[Problem]], device: torch.device) -> _Labels:
        groups = max(len(of_image) for of_image in problems)
        rows = max(len(problem.unary) for of_image in problems for problem in of_image)
        unary = torch.full((sum(sizes), groups, rows), np.inf, device=device)
        unary[..., -1] = 0
        share = torch.ones(len(sizes), groups, rows)
        for i, (part, of_image) in enumerate(zip(unary.split(sizes), problems, strict=True)):
            for g, problem in enumerate(of_image):
                part[:, g, rows - len(problem.unary) :] = torch.from_numpy(problem.unary).to(device).T
                share[i, g, rows - len(problem.unary) :] = 1 / torch.from_numpy(problem.copies)
        return cls(unary, share.to(device).repeat_interleave(torch.tensor(sizes, device=device), 0), sizes)

    def split(self, marginals: Tensor, problems: Sequence[Sequence[Problem]]) -> list[list[FloatArray]]:
        """The marginals (R, N) of every problem of every image."""
        return [
            [part[:, g, -len(problem.unary) :].T.contiguous().cpu().numpy() for g, problem in enumerate(of_image)]
            for part, of_image in zip(marginals.split(self.sizes), problems, strict=True)
        ]


@dataclass(frozen=True)
class _Kernel:
    """w K of all images. The matrices have a row (column) for every vertex, and the last for those that are not there;
    `neighbours` (d + 1, 2, M + 1) are the rows before and after each, along every axis."""

    splat: Tensor  # (M + 1, N), sparse
    slice: Tensor  # (N, M + 1), sparse
    neighbours: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Values (N, C), filtered."""
        table = self.splat @ values
        for before, after in self.neighbours:
            table = table + (table[before] + table[after]) / 2
        return self.slice @ table


class _Pixels:
    """The pixels of a batch of images."""

    def __init__(self, images: Sequence[Image], device: torch.device) -> None:
        self.images = images
        self.device = device
        self.uploaded = [torch.from_numpy(np.ascontiguousarray(image)).to(device) for image in images]

    def kernel(self, sxy: Scale, srgb: Scale | None, weight: float) -> _Kernel:
        """The symmetrically normalised kernel of positions, or of positions and colours."""
        columns = [self._features(image, sxy, srgb) for image in self.uploaded]
        highest = np.max([self._last(image, sxy, srgb) for image in self.images], axis=0)
        lattices = Lattices.of(columns, np.zeros_like(highest), highest)
        mass = lattices.filter(torch.ones(len(lattices.offsets), 1, device=self.device)).double() + 1e-20
        normalised = lattices.weights * mass.rsqrt().float()
        return lattices.kernel(normalised, normalised * (lattices.gain * weight))

    @staticmethod
    def _last(image: Image, sxy: Scale, srgb: Scale | None) -> FloatArray:
        """The largest features (d,) that a pixel of an image of this size can have."""
        height, width, channels = image.shape
        white = np.full((1, 1, channels), 255, np.uint8)
        position = np.hstack([gaussian_features(1, width, sxy)[-1, :1], gaussian_features(height, 1, sxy)[-1, 1:]])
        return position if srgb is None else np.append(position, bilateral_features(white, 1.0, srgb)[0, 2:])

    @staticmethod
    def _features(image: Tensor, sxy: Scale, srgb: Scale | None) -> Tensor:
        """Features (d, N), looked up in tables: a division on the device could round in another way."""
        height, width, channels = image.shape

        def table(values: FloatArray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(image.device)

        x, y = gaussian_features(1, width, sxy)[:, 0], gaussian_features(height, 1, sxy)[:, 1]
        rows = [table(x).expand(height, width), table(y)[:, None].expand(height, width)]
        if srgb is not None:
            ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (1, 256, channels))
            levels = table(bilateral_features(ramp, 1.0, srgb)[:, 2:])
            rows += [levels[:, channel][image[..., channel].int()] for channel in range(channels)]
        return torch.stack(rows).flatten(1)


# The lattices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lattices:
    """What `Lattice` is for one set of points, for the points of several images one after the other.

    `neighbours` has a last row M for the vertices that are not there.
    """

    offsets: Tensor  # (N, d + 1), int32
    weights: Tensor  # (N, d + 1)
    neighbours: Tensor  # (d + 1, 2, M + 1), int32

    @classmethod
    def of(cls, columns: Sequence[Tensor], lowest: FloatArray, highest: FloatArray) -> Lattices:
        """The lattices of the points (d, N) of each image, all within a box (d,), (d,)."""
        packing = Packing.of(coordinate_ranges(lowest, highest))
        if packing is None or packing.span * len(columns) >= 2**63:
            return _joined([Lattice.of(column.T.cpu().numpy()) for column in columns], columns[0].device)
        return _number(columns, packing)

    @property
    def gain(self) -> float:
        """See `Lattice.gain`."""
        return 1 / (1 + 2.0 ** (1 - len(self.neighbours)))

    @cached_property
    def by_vertex(self) -> tuple[Tensor, Tensor]:
        """The places in `offsets`, flat, in the order of vertices and then of points; and where each vertex begins
        among them, (M + 2,)."""
        vertex, order = self.offsets.flatten().sort(stable=True)
        vertices = self.neighbours.shape[2]
        return order, torch.searchsorted(vertex, torch.arange(vertices + 1, device=vertex.device, dtype=vertex.dtype))

    def filter(self, values: Tensor) -> Tensor:
        """F(v) of values (N, C)."""
        return self.kernel(self.weights, self.weights * self.gain)(values)

    def kernel(self, spread: Tensor, gather: Tensor) -> _Kernel:
        """Splat and slice with these weights (N, d + 1)."""
        points, corners = self.offsets.shape
        vertices = self.neighbours.shape[2]
        order, first = self.by_vertex
        every = torch.arange(0, self.offsets.numel() + 1, corners, device=order.device)
        return _Kernel(
            _sparse(first, order // corners, spread.flatten()[order], (vertices, points)),
            _sparse(every, self.offsets.flatten(), gather.flatten(), (points, vertices)),
            self.neighbours,
        )


def _sparse(first: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(first.int(), columns.int(), values, shape, check_invariants=False)


def embed(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`corner`, `rank` and `barycentric` of points (d, N), see `permutohedral.Simplices`: equal to the last bit."""
    d, points = columns.shape
    inverse = float(np.float32(1) / np.float32(d + 1))
    elevated = columns.new_empty(d + 1, points)
    remaining = columns.new_zeros(points)
    for j in range(d, 0, -1):
        c = columns[j - 1] * float(feature_scales(d)[j - 1])
        jc = c * j  # on its own, as a subtraction with a factor may round once only
        elevated[j] = remaining - jc
        remaining = remaining + c
    elevated[0] = remaining

    nearest = (elevated * inverse).round()
    corner = nearest.int()
    multiple = nearest * (d + 1)
    residual = elevated - multiple
    rank = corner.sum(0, dtype=torch.int32).repeat(d + 1, 1)
    for i in range(d):
        for j in range(i + 1, d + 1):
            less = (residual[i] < residual[j]).int()
            rank[i] += less
            rank[j] += 1 - less
    step = (rank < 0).int() - (rank > d).int()
    rank += step * (d + 1)
    corner += step

    multiple = (corner * (d + 1)).float()
    left = (elevated - multiple) * inverse
    ordered = torch.empty_like(left).scatter_(0, rank.long(), left)
    first = ordered[d] + (1 - ordered[0])
    return corner, rank, torch.cat([first[None], (ordered[:-1] - ordered[1:]).flip(0)])


def _number(columns: Sequence[Tensor], packing: Packing) -> Lattices:
    """The lattices of the points (d, N) of each image, vertices in the order of their keys."""
    device, d = columns[0].device, len(columns[0])
    images = torch.arange(len(columns), device=device)
    sizes = torch.tensor([column.shape[1] for column in columns], device=device)
    fill = torch.nonzero(sizes % 4).flatten()  # images whose lattice has the simplex at the origin in any case
    image = torch.cat([images.repeat_interleave(sizes), fill])
    corner, rank, weights = embed(torch.cat([*columns, columns[0].new_zeros(d, len(fill))], 1))

    def on_device(numbers: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(device)

    steps = on_device(packing.steps)
    key = image * packing.span
    for coordinate, unit in zip(corner, packing.vertex.tolist(), strict=False):  # all but the last
        key += coordinate.long() * ((d + 1) * unit)
    axes = torch.empty_like(rank).scatter_(
        0, rank.long(), torch.arange(d + 1, device=device).int()[:, None].expand_as(rank)
    )
    # Vertex k + 1 follows k along the axis of rank d - k.
    onward = steps[axes[1:].flip(0)].cumsum(0)
    keys = torch.cat([key[None], key + onward]).T
    vertices, offsets = keys.unique(return_inverse=True)

    def row(sought: Tensor) -> Tensor:
        place = torch.searchsorted(vertices, sought).clamp(max=len(vertices) - 1)
        found = torch.where(vertices[place] == sought, place, len(vertices))
        return torch.cat([found, found.new_full((1,), len(vertices))]).int()

    neighbours = [torch.stack([row(vertices - step), row(vertices + step)]) for step in steps]
    points = len(image) - len(fill)
    return Lattices(offsets[:points].int(), weights.T[:points].contiguous(), torch.stack(neighbours))


def _joined(lattices: Sequence[Lattice], device: torch.device) -> Lattices:
    """The same from lattices built one by one: for scales so small that keys of 64 bits do not hold the coordinates."""
    before = np.cumsum([0, *(lattice.vertices for lattice in lattices)])
    absent = before[-1]
    offsets = [lattice.offsets + start for lattice, start in zip(lattices, before, strict=False)]
    neighbours = [
        np.where(lattice.neighbours < lattice.vertices, lattice.neighbours + start, absent)
        for lattice, start in zip(lattices, before, strict=False)
    ]
    last = np.full((*neighbours[0].shape[:2], 1), absent)
    return Lattices(
        torch.from_numpy(np.concatenate(offsets).astype(np.int32)).to(device),
        torch.from_numpy(np.concatenate([lattice.weights for lattice in lattices])).to(device),
        torch.from_numpy(np.concatenate([*neighbours, last], 2).astype(np.int32)).to(device),
    )
