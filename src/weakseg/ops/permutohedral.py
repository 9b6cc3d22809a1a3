"""The permutohedral lattice: where points in d dimensions lie among the vertices of simplices.

A. Adams, J. Baek, M. Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*, Eurographics 2010.
Values of points are spread over the d + 1 vertices of their simplices, mixed along the axes of the lattice, and
gathered again (`lattice_filter.py`): a Gaussian filter in time linear in the points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.ops.compiled import compiled, load, rounded, store, vector

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.uint32]
KeyArray = npt.NDArray[np.int64]

BLOCK = 256  # points that are embedded before they are numbered: their scratch rows stay in the L1 cache
TOGETHER = (0,) * 16  # as many points are embedded at once
# Beyond this float32 has too few fractional bits to tell in which simplex a point lies.
MAX_COORDINATE = float(1 << 22)
EMPTY = -1
HASH = np.int64(-7046029254386353131)  # 2^64 / golden ratio, odd, as a signed number


@dataclass(frozen=True)
class Lattice:
    """N points in d dimensions and the M vertices of the simplices around them.

    `offsets` (N, d + 1) are the vertices of each point's simplex, numbered in the order of first visit; `weights`
    (N, d + 1) the barycentric weights of the point among them. `neighbours` (d + 1, 2, M) are, along each axis, the
    vertices before and after; M stands for a vertex that is not there.
    """

    offsets: IndexArray
    weights: FloatArray
    neighbours: IndexArray

    @property
    def points(self) -> int:
        """The number of points N."""
        return self.offsets.shape[0]

    @property
    def vertices(self) -> int:
        """The number of vertices M."""
        return self.neighbours.shape[2]

    @property
    def gain(self) -> float:
        """α = 1 / (1 + 2^-d), which makes up for the mass that blurring adds."""
        return 1 / (1 + 2.0 ** (1 - len(self.neighbours)))

    @classmethod
    def of(cls, features: npt.NDArray[Any]) -> Lattice:
        """The lattice of points (N, d), float32, measured in standard deviations of the Gaussian.

        The set of vertices equals the reference implementation's, which works in blocks of four points and fills the
        last block with points at the origin: their simplex is there, without mass, where N is not a multiple of 4.

        Raises `WeaksegError` for no points, points that are not finite, or too far out for float32.
        """
        points, d = features.shape
        if points == 0 or d == 0:
            raise WeaksegError(f"A lattice needs at least one point and one dimension, not an array {features.shape}.")
        columns = np.ascontiguousarray(features.T, np.float32)
        if points % 4:
            columns = np.column_stack([columns, np.zeros(d, np.float32)])
        packing = Packing.of(coordinate_ranges(columns.min(axis=1), columns.max(axis=1)))
        offsets, weights, neighbours = _number(columns, packing) if packing else _number_by_sorting(columns)
        return cls(offsets[:points], weights[:points], neighbours)


# Embedding: from a point to its simplex and barycentric weights (section 3 of the paper) -----------------------------


def feature_scales(dimension: int) -> FloatArray:
    """The scale of each feature: makes the blur [½, 1, ½] along the axes a Gaussian of standard deviation 1."""
    spread = float(np.float32(np.sqrt(2 / 3) * (dimension + 1)))
    axis = np.arange(1, dimension + 1, dtype=np.float64)
    return (1 / np.sqrt(axis * (axis + 1)) * spread).astype(np.float32)


class Simplices(NamedTuple):
    """Where points lie; all arrays are (d + 1, points).

    The simplex has one vertex whose coordinates are all multiples of d + 1: (d + 1) · `corner`. `rank` orders what
    is left of the point's coordinates, 0 the largest. Vertex k, whose weight is `barycentric[k]`, has coordinates
    (d + 1) · corner_i + k, less d + 1 where rank_i > d - k.
    """

    corner: npt.NDArray[np.int32]
    rank: npt.NDArray[np.int32]
    barycentric: FloatArray
    coordinates: FloatArray  # scratch

    @classmethod
    def zeros(cls, d: int, points: int) -> Simplices:
        """Room for that many points, or a few more."""
        shape = 2, d + 1, points + -points % len(TOGETHER)
        return cls(*np.zeros(shape, np.int32), *np.zeros(shape, np.float32))


def embed(columns: FloatArray) -> Simplices:
    """The simplices of points (d, N)."""
    d, points = columns.shape
    simplices = Simplices.zeros(d, points)
    _embed(columns, 0, points, feature_scales(d), simplices)
    return Simplices._make(array[:, :points] for array in simplices)


@compiled()
def _embed(columns: Any, start: int, count: int, sigma: Any, simplices: Any) -> None:
    """Embed `count` points from `start` on.

    No multiplication and addition may fuse here, and their order matters: many points lie exactly on faces, where the
    last bit decides about the simplex.
    """
    corner, rank, barycentric, coordinates = simplices
    d, row = len(columns), coordinates.shape[1]
    one, axes = np.float32(1), np.float32(d + 1)
    inverse = one / axes
    for j in range(d):
        for p in range(count):
            coordinates[j + 1, p] = columns[j, start + p]
    zero = vector(TOGETHER)
    for p in range(0, count, len(TOGETHER)):
        total = zero
        for j in range(d, 0, -1):
            c = load(coordinates, j * row + p, zero) * sigma[j - 1]
            store(coordinates, j * row + p, total - np.float32(j) * c)
            total = total + c
        store(coordinates, p, total)

        # The nearest point whose coordinates are multiples of d + 1, and what is left of each coordinate.
        residuals, excess = barycentric, zero
        for i in range(d + 1):
            coordinate = load(coordinates, i * row + p, zero)
            nearest = rounded(inverse * coordinate)
            store(corner, i * row + p, nearest)
            store(residuals, i * row + p, coordinate - nearest * axes)
            excess = excess + nearest

        # Coordinates that do not sum to 0 are moved by one step where the residual is largest (smallest).
        for i in range(d + 1):
            residual, order = load(residuals, i * row + p, zero), excess
            for j in range(i):
                order = order + (load(residuals, j * row + p, zero) >= residual)
            for j in range(i + 1, d + 1):
                order = order + (load(residuals, j * row + p, zero) > residual)
            step = (zero > order) - (order > axes - one)
            nearest = load(corner, i * row + p, zero) + step
            store(corner, i * row + p, nearest)
            store(rank, i * row + p, order + step * axes)
            store(coordinates, i * row + p, (load(coordinates, i * row + p, zero) - nearest * axes) * inverse)

        first, previous = zero, zero
        for k in range(d + 1):
            kth = zero  # the coordinate of rank k
            for i in range(d + 1):
                kth = kth + (load(rank, i * row + p, zero) == k) * load(coordinates, i * row + p, zero)
            if k == 0:
                first = kth
            else:
                store(barycentric, (d + 1 - k) * row + p, previous - kth)
            previous = kth
        store(barycentric, p, previous + (one - first))


# Numbering: which vertices there are, and which are neighbours --------------------------------------------------------


def coordinate_ranges(lowest: FloatArray, highest: FloatArray) -> list[int]:
    """How many values each coordinate of `corner` can take, bounded from the box (d,) and (d,) around all points.

    Raises `WeaksegError` where float32 is too coarse for points that far out, or a bound is not finite.
    """
    d = len(lowest)
    elevate = np.triu(np.ones((d + 1, d)))
    elevate[np.arange(1, d + 1), np.arange(d)] = -np.arange(1, d + 1)
    low, high = (bound.astype(np.float64) * feature_scales(d) for bound in (lowest, highest))
    centre, radius = elevate @ (low + high) / 2, np.abs(elevate) @ (high - low) / 2
    if not (np.abs(centre) + radius).max() < MAX_COORDINATE:
        raise WeaksegError(
            f"Features of the lattice reach {np.abs([lowest, highest]).max():g} standard deviations, where float32 is "
            "too coarse (or they are not finite). Choose larger scales."
        )
    # Rounding to the nearest and one step in either direction, and one more for rounding errors.
    return [int(2 * r / (d + 1)) + 6 for r in radius]


class Packing(NamedTuple):
    """How coordinates fit into 64-bit keys.

    The last coordinate is left out: it follows from the others, as they sum to 0. A simplex is `corner` · `simplex`,
    and in the lowest bits, `bits` for each vertex, the axis that leads from there to the next vertex. A vertex is its
    coordinates · `vertex`. `steps` (d + 1) is what one step along an axis adds to the key of a vertex: + 1 in every
    coordinate, and - (d + 1) in that of the axis. Keys of vertices and their neighbours differ by less than `span`.
    """

    simplex: KeyArray
    bits: int
    vertex: KeyArray
    steps: KeyArray
    span: int

    @classmethod
    def of(cls, ranges: list[int]) -> Packing | None:
        """The packing for coordinates of these ranges; None where 63 bits do not hold them."""
        d = len(ranges) - 1
        bits = d.bit_length()
        simplex = [1 << bits * (d + 1)]
        vertex = [1]
        for size in ranges[:-1]:
            simplex.append(simplex[-1] * size)
            vertex.append(vertex[-1] * (d + 1) * (size + 3))  # with room for neighbours
        if max(simplex[-1], vertex[-1]) >= 2**63:
            return None
        steps = sum(vertex[:-1]) - (d + 1) * np.array([*vertex[:-1], 0])
        return cls(np.array([*simplex[:-1], 0]), bits, np.array(vertex[:-1]), steps, vertex[-1])


class _Keys(NamedTuple):
    """Numbers 0, 1, 2, … for keys in the order of first visit: an open-addressing table, at most half full.

    `slots` hold indices into `keys`, or `EMPTY`.
    """

    slots: npt.NDArray[np.int32]
    keys: KeyArray

    @classmethod
    def empty(cls, capacity: int) -> _Keys:
        slots = np.full(1 << (2 * capacity - 1).bit_length(), EMPTY, np.int32)
        return cls(slots, np.empty(capacity, np.int64))

    def with_room(self, count: int, more: int) -> _Keys:
        """The same `count` keys in a table that takes `more` of them."""
        if count + more <= len(self.keys):
            return self
        larger = _Keys.empty(2 * (count + more))
        larger.keys[:count] = self.keys[:count]
        _place(larger, count)
        return larger


@compiled(inner=True)
def _slot(table: Any, key: Any) -> Any:
    """The slot of `key`, or the empty one where it belongs."""
    mask = np.uint64(len(table.slots) - 1)
    slot = np.uint64((key * HASH) >> 32) & mask
    while table.slots[slot] != EMPTY and table.keys[table.slots[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@compiled()
def _place(table: Any, count: int) -> None:
    for index in range(count):
        table.slots[_slot(table, table.keys[index])] = index


def _number(columns: FloatArray, packing: Packing) -> tuple[IndexArray, FloatArray, IndexArray]:
    """`offsets`, `weights` and `neighbours` of points (d, N)."""
    d, points = columns.shape
    offsets, weights = np.empty((points, d + 1), np.uint32), np.empty((points, d + 1), np.float32)
    simplices, vertices = _Keys.empty(points // 2 + BLOCK), _Keys.empty(points // 4 + BLOCK * (d + 1))  # a guess
    first_point = np.empty(points, np.uint32)  # of each simplex
    counts = np.zeros(2, np.int64)  # of simplices and of vertices so far
    scratch, packed = Simplices.zeros(d, BLOCK), np.empty(BLOCK, np.int64)
    start = 0
    while start < points:
        simplices = simplices.with_room(int(counts[0]), BLOCK)
        vertices = vertices.with_room(int(counts[1]), BLOCK * (d + 1))
        start = _number_points(
            columns,
            start,
            feature_scales(d),
            packing,
            simplices,
            vertices,
            first_point,
            counts,
            scratch,
            packed,
            offsets,
            weights,
        )
    neighbours = np.full((d + 1, 2, counts[1]), counts[1], np.uint32)
    _find_neighbours(vertices, packing.steps, neighbours)
    return offsets, weights, neighbours


@compiled()
def _number_points(
    columns: Any,
    start: int,
    sigma: Any,
    packing: Any,
    simplices: Any,
    vertices: Any,
    first_point: Any,
    counts: Any,
    scratch: Any,
    packed: Any,
    offsets: Any,
    weights: Any,
) -> int:
    """Number the vertices of the points from `start` on, while the tables have room; returns where to go on."""
    d, points = columns.shape
    corner, rank, barycentric, _ = scratch
    simplex_count, vertex_count = counts[0], counts[1]
    while (
        start < points
        and simplex_count + BLOCK <= len(simplices.keys)
        and vertex_count + BLOCK * (d + 1) <= len(vertices.keys)
    ):
        count = min(BLOCK, points - start)
        _embed(columns, start, count, sigma, scratch)
        for p in range(count):
            packed[p] = 0
        for i in range(d + 1):
            for p in range(count):
                # Vertex k + 1 follows k along the axis of rank d - k.
                packed[p] += corner[i, p] * packing.simplex[i] + (i << packing.bits * (d - rank[i, p]))
        for p in range(count):
            point = start + p
            simplex = packed[p]
            for k in range(d + 1):
                weights[point, k] = barycentric[k, p]
            slot = _slot(simplices, simplex)
            if simplices.slots[slot] != EMPTY:
                first = first_point[simplices.slots[slot]]
                for k in range(d + 1):
                    offsets[point, k] = offsets[first, k]
                continue
            simplices.slots[slot] = simplex_count
            simplices.keys[simplex_count] = simplex
            first_point[simplex_count] = point
            simplex_count += 1
            key = np.int64(0)
            for i in range(d):
                key += corner[i, p] * packing.vertex[i] * (d + 1)
            for k in range(d + 1):
                slot = _slot(vertices, key)
                if vertices.slots[slot] == EMPTY:
                    vertices.slots[slot] = vertex_count
                    vertices.keys[vertex_count] = key
                    vertex_count += 1
                offsets[point, k] = vertices.slots[slot]
                key += packing.steps[simplex & ((1 << packing.bits) - 1)]
                simplex >>= packing.bits
        start += count
    counts[0], counts[1] = simplex_count, vertex_count
    return start


@compiled()
def _find_neighbours(vertices: Any, steps: Any, neighbours: Any) -> None:
    for axis in range(len(neighbours)):
        for index in range(neighbours.shape[2]):
            found = vertices.slots[_slot(vertices, vertices.keys[index] - steps[axis])]
            if found != EMPTY:
                neighbours[axis, 0, index] = found
                neighbours[axis, 1, found] = index


def _number_by_sorting(columns: FloatArray) -> tuple[IndexArray, FloatArray, IndexArray]:
    """The same as `_number` for coordinates of any range: slow, for scales far below those in use."""
    d, points = columns.shape
    corner, rank, weights, *_ = embed(columns)
    keys = np.empty((points, d + 1, d), np.int64)
    for k in range(d + 1):
        keys[:, k] = ((d + 1) * corner + k - (d + 1) * (rank > d - k))[:d].T
    rows = keys.reshape(-1, d)
    _, first, inverse = np.unique(_same_rows(rows), return_index=True, return_inverse=True)
    order = np.argsort(first)  # first visit
    number = np.argsort(order)
    offsets, vertices = number[inverse].reshape(points, d + 1), rows[first[order]]
    neighbours = np.full((d + 1, 2, len(vertices)), len(vertices), np.uint32)
    for i in range(d + 1):
        before = vertices - 1
        if i < d:
            before[:, i] += d + 1
        name = _same_rows(np.concatenate([vertices, before]))
        lookup = np.full(name.max() + 1, len(vertices))
        lookup[name[: len(vertices)]] = np.arange(len(vertices))
        found = lookup[name[len(vertices) :]]
        neighbours[i, 0] = found
        here = np.flatnonzero(found < len(vertices))
        neighbours[i, 1, found[here]] = here
    return offsets.astype(np.uint32), np.ascontiguousarray(weights.T), neighbours


def _same_rows(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number for each row, the same for equal rows, below the number of rows."""
    names = np.zeros(len(rows), np.int64)
    for column in rows.T:
        column = column - column.min()
        _, names = np.unique(names * (column.max() + 1) + column, return_inverse=True)
    return names
