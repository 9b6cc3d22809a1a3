"""The permutohedral lattice: Gaussian filtering of points in d dimensions, in time linear in the points.

A. Adams, J. Baek, M. Davis, *Fast High-Dimensional Filtering Using the Permutohedral Lattice*, Eurographics 2010.
A point lies in a simplex of d + 1 lattice vertices. Its value is spread over them (splat), neighbouring vertices mix
along each of the d + 1 axes (blur), and every point gathers the result from its vertices (slice).

`Lattice` is the structure and one filtering; `mean_field` is the inner loop of the dense CRF, which slices, takes the
softmax and splats again block by block, so that vertices and weights are read once per iteration. Everything here is
compiled at first use, kept on disk, and runs without the interpreter lock: one image per thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.uint32]

BLOCK = 256  # points that are worked on together: their scratch rows stay in the L1 cache
EMPTY = -1
FIRST_KEYS = 1 << 13
HASH = np.int64(-7046029254386353131)  # 2^64 / golden ratio, odd, as a signed number
# Beyond this float32 has too few fractional bits to tell in which simplex a point lies.
MAX_COORDINATE = float(1 << 22)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile without the interpreter lock; keep the machine code on disk where there is a place for it."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return numba.njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


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
    def vertices(self) -> int:
        """The number of vertices M."""
        return self.neighbours.shape[2]

    @classmethod
    def of(cls, features: npt.NDArray[Any]) -> Lattice:
        """The lattice of points (N, d), float32, measured in standard deviations of the Gaussian.

        The set of vertices equals the reference implementation's, which works in blocks of four points and fills the
        last block with points at the origin: their simplex is there, without mass, where N is not a multiple of 4.

        Raises `WeaksegError` for no points, points that are not finite, or too far out for float32.
        """
        points, dimension = features.shape
        if points == 0 or dimension == 0:
            raise WeaksegError(f"A lattice needs at least one point and one dimension, not an array {features.shape}.")
        columns = np.zeros((dimension, points + (points % 4 != 0)), np.float32)
        columns[:, :points] = features.T
        offsets, weights, neighbours = _number(columns)
        return cls(offsets[:points], weights[:points], neighbours)

    def filter(self, values: npt.NDArray[Any]) -> FloatArray:
        """F(v): values (C, N) float32 blurred by the Gaussian of standard deviation 1, (C, N) float32."""
        values = np.ascontiguousarray(values, np.float32)
        channels, points = values.shape
        tables = np.zeros((2, self.vertices + 1, channels), np.float32)
        result = np.zeros((channels, points), np.float32)
        splat(self.offsets, self.weights, 0, points, values, tables[0])
        final = blur(self.neighbours, tables, 0)
        slice_(self.offsets, self.weights, 0, points, tables[final], self.gain, result)
        return result

    @property
    def gain(self) -> np.float32:
        """α = 1 / (1 + 2^-d), which makes up for the mass that blurring adds."""
        return np.float32(1 / (1 + 2.0 ** (1 - self.offsets.shape[1])))


# Embedding: from a point to its simplex and barycentric weights (section 3 of the paper) -----------------------------


def _sigma(dimension: int) -> FloatArray:
    """The scale of each feature: makes the blur [½, 1, ½] along the axes a Gaussian of standard deviation 1."""
    spread = float(np.float32(np.sqrt(2 / 3) * (dimension + 1)))
    axis = np.arange(1, dimension + 1, dtype=np.float64)
    return (1 / np.sqrt(axis * (axis + 1)) * spread).astype(np.float32)


@compiled()
def _embed(
    features: Any, start: int, count: int, sigma: Any, corner: Any, rank: Any, barycentric: Any, scratch: Any
) -> None:
    """Find the simplices of `count` points. No multiplication and addition may fuse here: many points lie exactly on
    faces, where the last bit decides about the simplex.

    The remainder-0 vertex is (d + 1) · `corner`; `rank` orders the residuals, 0 the largest; all are (d + 1, count).
    """
    d = features.shape[0]
    inverse = np.float32(1) / np.float32(d + 1)
    elevated, sorted_ = scratch[0], scratch[1]
    for p in range(count):
        elevated[0, p] = 0
    for j in range(d, 0, -1):
        for p in range(count):
            c = features[j - 1, start + p] * sigma[j - 1]
            elevated[j, p] = elevated[0, p] - np.float32(j) * c
            elevated[0, p] += c

    # The nearest point whose coordinates are multiples of d + 1, and what is left of each coordinate.
    excess = rank[d]
    residual = sorted_
    for p in range(count):
        excess[p] = 0
    for i in range(d + 1):
        for p in range(count):
            nearest = np.rint(inverse * elevated[i, p])
            corner[i, p] = np.int32(nearest)
            residual[i, p] = elevated[i, p] - nearest * np.float32(d + 1)
            excess[p] += corner[i, p]
    for i in range(d):
        for p in range(count):
            rank[i, p] = excess[p]
    for i in range(d):
        for j in range(i + 1, d + 1):
            for p in range(count):
                less = np.int32(residual[i, p] < residual[j, p])
                rank[i, p] += less
                rank[j, p] += np.int32(1) - less

    # Coordinates that do not sum to 0 are moved by one step where the residual is largest (smallest).
    for i in range(d + 1):
        for p in range(count):
            step = np.int32(rank[i, p] < 0) - np.int32(rank[i, p] > d)
            rank[i, p] += step * np.int32(d + 1)
            corner[i, p] += step
    for i in range(d + 1):
        for p in range(count):
            nearest = np.float32(corner[i, p] * np.int32(d + 1))
            sorted_[rank[i, p], p] = (elevated[i, p] - nearest) * inverse
    for p in range(count):
        barycentric[0, p] = sorted_[d, p] + (np.float32(1) - sorted_[0, p])
    for k in range(1, d + 1):
        for p in range(count):
            barycentric[k, p] = sorted_[d - k, p] - sorted_[d - k + 1, p]


def embed(
    columns: FloatArray,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], FloatArray]:
    """`corner`, `rank` and barycentric weights, each (d + 1, N), of the points (d, N)."""
    d, points = columns.shape
    corner, rank = np.empty((2, d + 1, points), np.int32)
    barycentric, scratch = np.empty((d + 1, points), np.float32), np.empty((2, d + 1, points), np.float32)
    _embed(columns, 0, points, _sigma(d), corner, rank, barycentric, scratch)
    return corner, rank, barycentric


# Numbering: which vertices there are, and which are neighbours --------------------------------------------------------


def _corner_sizes(columns: FloatArray) -> npt.NDArray[np.float64]:
    """How many values each coordinate of `corner` can take for features (d, N); with a margin for rounding."""
    d = len(columns)
    elevate = np.triu(np.ones((d + 1, d)))
    elevate[np.arange(1, d + 1), np.arange(d)] = -np.arange(1, d + 1)
    low, high = (bound.astype(np.float64) * _sigma(d) for bound in (columns.min(axis=1), columns.max(axis=1)))
    centre, radius = elevate @ ((low + high) / 2), np.abs(elevate) @ ((high - low) / 2)
    furthest = (np.abs(centre) + radius).max()
    if not furthest < MAX_COORDINATE:
        raise WeaksegError(
            f"The features of the lattice reach {np.abs(columns).max():g} standard deviations, which float32 cannot "
            "tell apart (or they are not finite). Choose larger scales."
        )
    return np.ceil((centre + radius) / (d + 1)) - np.floor((centre - radius) / (d + 1)) + 5


def _strides(sizes: npt.NDArray[np.float64], unit: int) -> npt.NDArray[np.int64] | None:
    """Factors that pack coordinates of these sizes into multiples of `unit`; None where 63 bits do not hold them."""
    strides = [unit]
    for size in sizes:
        strides.append(strides[-1] * int(size))
    return np.array(strides[:-1]) if strides[-1] < 2**63 else None


def _number(columns: FloatArray) -> tuple[IndexArray, FloatArray, IndexArray]:
    """`offsets`, `weights` and `neighbours` of the points (d, N)."""
    d = len(columns)
    sizes = _corner_sizes(columns)[:d]  # the last coordinate follows from the others: they sum to 0
    rank_bits = d.bit_length()
    simplex_strides = _strides(sizes, 1 << rank_bits * (d + 1))
    vertex_strides = _strides((d + 1) * (sizes + 3), 1)  # with room for neighbours
    if simplex_strides is None or vertex_strides is None:
        return _number_wide(columns)
    return _number_packed(columns, _sigma(d), simplex_strides, rank_bits, vertex_strides)


@compiled()
def _slot(slots: Any, keys: Any, key: Any) -> int:
    """The place of `key` in an open-addressing table of indices into `keys`, or the empty place where it belongs."""
    mask = len(slots) - 1
    slot = ((key * HASH) >> 32) & mask
    while slots[slot] != EMPTY and keys[slots[slot]] != key:
        slot = (slot + 1) & mask
    return slot


@compiled()
def _grow(keys: Any, count: int) -> Any:
    """A table and an array of keys of twice the size; the table is at most half full."""
    larger = np.empty(2 * len(keys), np.int64)
    slots = np.full(4 * len(keys), EMPTY, np.int32)
    for index in range(count):
        slots[_slot(slots, keys, keys[index])] = index
        larger[index] = keys[index]
    return slots, larger


@compiled()
def _number_packed(columns: Any, sigma: Any, simplex_strides: Any, rank_bits: int, vertex_strides: Any) -> Any:
    """Number simplices and vertices through hash tables whose keys are coordinates packed into 64 bits."""
    d, points = columns.shape
    offsets = np.empty((points, d + 1), np.uint32)
    weights = np.empty((points, d + 1), np.float32)
    simplex_slots, simplex_keys = np.full(2 * FIRST_KEYS, EMPTY, np.int32), np.empty(FIRST_KEYS, np.int64)
    vertex_slots, vertex_keys = np.full(2 * FIRST_KEYS, EMPTY, np.int32), np.empty(FIRST_KEYS, np.int64)
    first_point = np.empty(points, np.uint32)  # of each simplex
    simplices = vertices = 0

    # One step from vertex to vertex of a simplex: + 1 in every coordinate, - (d + 1) in one of them.
    steps = np.full(d + 1, vertex_strides.sum())
    steps[:d] -= (d + 1) * vertex_strides

    corner, rank = np.empty((d + 1, BLOCK), np.int32), np.empty((d + 1, BLOCK), np.int32)
    barycentric, scratch = np.empty((d + 1, BLOCK), np.float32), np.empty((2, d + 1, BLOCK), np.float32)
    simplex, vertex = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    axes = np.empty(d + 1, np.int64)
    recent_keys, recent = np.zeros(d + 1, np.int64), np.full(d + 1, EMPTY, np.int64)
    for start in range(0, points, BLOCK):
        count = min(BLOCK, points - start)
        _embed(columns, start, count, sigma, corner, rank, barycentric, scratch)
        for p in range(count):
            simplex[p] = np.int64(rank[d, p]) << rank_bits * d
            vertex[p] = 0
        for i in range(d):
            for p in range(count):
                simplex[p] += corner[i, p] * simplex_strides[i] + (np.int64(rank[i, p]) << rank_bits * i)
                vertex[p] += corner[i, p] * ((d + 1) * vertex_strides[i])
        for p in range(count):
            point = start + p
            for k in range(d + 1):
                weights[point, k] = barycentric[k, p]
            if p > 0 and simplex[p] == simplex[p - 1]:
                offsets[point] = offsets[point - 1]
                continue
            slot = _slot(simplex_slots, simplex_keys, simplex[p])
            if simplex_slots[slot] != EMPTY:
                offsets[point] = offsets[first_point[simplex_slots[slot]]]
                continue
            if simplices == len(simplex_keys):
                simplex_slots, simplex_keys = _grow(simplex_keys, simplices)
                slot = _slot(simplex_slots, simplex_keys, simplex[p])
            simplex_slots[slot], simplex_keys[simplices], first_point[simplices] = simplices, simplex[p], point
            simplices += 1
            for i in range(d + 1):
                axes[d - rank[i, p]] = i
            key = vertex[p]
            for k in range(d + 1):
                if recent[k] == EMPTY or recent_keys[k] != key:  # neighbouring simplices share vertices
                    slot = _slot(vertex_slots, vertex_keys, key)
                    if vertex_slots[slot] == EMPTY:
                        if vertices == len(vertex_keys):
                            vertex_slots, vertex_keys = _grow(vertex_keys, vertices)
                            slot = _slot(vertex_slots, vertex_keys, key)
                        vertex_slots[slot], vertex_keys[vertices] = vertices, key
                        vertices += 1
                    recent[k], recent_keys[k] = vertex_slots[slot], key
                offsets[point, k] = recent[k]
                key += steps[axes[k]]

    neighbours = np.full((d + 1, 2, vertices), vertices, np.uint32)
    # Successive vertices of a simplex are neighbours along the axis whose rank is their place; no need to search.
    for index in range(simplices):
        own = offsets[first_point[index]]
        for i in range(d + 1):
            k = d - ((simplex_keys[index] >> rank_bits * i) & ((1 << rank_bits) - 1))
            before, after = own[k], own[k + 1 if k < d else 0]
            neighbours[i, 1, before] = after
            neighbours[i, 0, after] = before
    for i in range(d + 1):
        for index in range(vertices):
            if neighbours[i, 0, index] == vertices:
                found = vertex_slots[_slot(vertex_slots, vertex_keys, vertex_keys[index] - steps[i])]
                if found != EMPTY:
                    neighbours[i, 0, index] = found
                    neighbours[i, 1, found] = index
    return offsets, weights, neighbours


def _number_wide(columns: FloatArray) -> tuple[IndexArray, FloatArray, IndexArray]:
    """The same for coordinates of any size, by sorting: slower, for scales far below those of practice."""
    d, points = columns.shape
    corner, rank, weights = embed(columns)
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


# Filtering: splat, blur, slice ----------------------------------------------------------------------------------------


@compiled(fastmath={"contract"})
def splat(offsets: Any, weights: Any, start: int, count: int, values: Any, table: Any) -> None:
    """Spread `values` (C, ≥ count) of the points from `start` on over `table` (M + 1, C)."""
    channels = table.shape[1]
    quads = channels - channels % 4
    for p in range(count):
        for v in range(offsets.shape[1]):
            row, weight = offsets[start + p, v], weights[start + p, v]
            for c in range(0, quads, 4):
                table[row, c] += weight * values[c, p]
                table[row, c + 1] += weight * values[c + 1, p]
                table[row, c + 2] += weight * values[c + 2, p]
                table[row, c + 3] += weight * values[c + 3, p]
            for c in range(quads, channels):
                table[row, c] += weight * values[c, p]


@compiled(fastmath={"contract"})
def slice_(offsets: Any, weights: Any, start: int, count: int, table: Any, factor: Any, values: Any) -> None:
    """Add `factor` times what the points gather from `table` (M + 1, C) to `values` (C, ≥ count)."""
    channels = table.shape[1]
    quads = channels - channels % 4
    zero = np.float32(0)
    for p in range(count):
        for c in range(0, quads, 4):
            a, b, e, f = zero, zero, zero, zero
            for v in range(offsets.shape[1]):
                row, weight = offsets[start + p, v], weights[start + p, v]
                a += weight * table[row, c]
                b += weight * table[row, c + 1]
                e += weight * table[row, c + 2]
                f += weight * table[row, c + 3]
            values[c, p] += factor * a
            values[c + 1, p] += factor * b
            values[c + 2, p] += factor * e
            values[c + 3, p] += factor * f
        for c in range(quads, channels):
            a = zero
            for v in range(offsets.shape[1]):
                a += weights[start + p, v] * table[offsets[start + p, v], c]
            values[c, p] += factor * a


@compiled(fastmath={"contract"})
def blur(neighbours: Any, tables: Any, current: int) -> int:
    """Mix neighbours along each axis in turn, out of place, from `tables[current]` (M + 1, C) to the other table and
    back; returns where the result is. Row M stays 0: the vertex that is not there."""
    half = np.float32(0.5)
    for axis in range(neighbours.shape[0]):
        source, target = tables[current], tables[1 - current]
        for row in range(neighbours.shape[2]):
            before, after = neighbours[axis, 0, row], neighbours[axis, 1, row]
            for c in range(source.shape[1]):
                target[row, c] = source[row, c] + half * (source[before, c] + source[after, c])
        current = 1 - current
    return current


# Mean field: slice, softmax, splat ------------------------------------------------------------------------------------

LOG2_E = np.float32(np.log2(np.e))
UNDERFLOW = np.float32(-87)  # exp is taken as 0 below
# 2^f for |f| ≤ ½, relative error 1e-7: the polynomial of degree 5 through the Chebyshev points.
EXP2 = tuple(
    np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial).coef
)
E0, E1, E2, E3, E4, E5 = (np.float32(c) for c in EXP2)


@compiled(fastmath={"contract"})
def _softmax(rows: Any, members: Any, count: int, scratch: Any) -> None:
    """Softmax over the rows `members` of `rows` (R, ≥ count), in place.

    exp is written out so that the loops over points become vector instructions.
    """
    high, total = scratch[0], scratch[1]
    exponent = scratch[2].view(np.int32)
    for p in range(count):
        high[p] = rows[members[0], p]
        total[p] = 0
    for r in members[1:]:
        for p in range(count):
            high[p] = max(high[p], rows[r, p])
    for r in members:
        for p in range(count):
            x = rows[r, p] - high[p]
            scaled = max(x, UNDERFLOW) * LOG2_E
            whole = np.rint(scaled)
            f = scaled - whole
            power = E0 + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * E5))))
            exponent[p] = (np.int32(whole) + np.int32(127)) << np.int32(23)
            rows[r, p] = power if x > UNDERFLOW else np.float32(0)
        for p in range(count):
            rows[r, p] *= scratch[2, p]
            total[p] += rows[r, p]
    for p in range(count):
        total[p] = np.float32(1) / total[p]
    for r in members:
        for p in range(count):
            rows[r, p] *= total[p]


@compiled(fastmath={"contract"})
def mean_field(
    unary: Any, share: Any, members: Any, bounds: Any, kernels: Any, constant: Any, iterations: int, marginals: Any
) -> None:
    """Mean-field iterations for `unary` (R, N) with Potts compatibility; the result goes to `marginals` (R, N).

    Several problems share the kernels: the rows of problem g are `members[bounds[g] : bounds[g + 1]]`. The last of
    them is not filtered, as its message follows from the others: Q sums to 1, so all messages sum to `constant` (N).
    The filtered rows of all problems come first in `unary`. A row that stands for n labels with equal unaries holds
    U - ln n, and has the `share` 1 / n. A kernel is (offsets, weights, neighbours, factor, tables), with `tables`
    (2, M + 1, C) of zeros for C filtered rows.
    """
    rows, points = unary.shape
    current = np.zeros(len(kernels), np.int64)
    scratch, block = np.empty((3, BLOCK), np.float32), np.empty((rows, BLOCK), np.float32)
    for iteration in range(iterations + 1):
        for k, (_, _, neighbours, _, tables) in enumerate(kernels):
            if iteration > 0:
                current[k] = blur(neighbours, tables, current[k])
                tables[1 - current[k]] = 0  # takes this iteration's result
        for start in range(0, points, BLOCK):
            count = min(BLOCK, points - start)
            block[:] = 0
            if iteration > 0:
                for k, (offsets, weights, _, factor, tables) in enumerate(kernels):
                    slice_(offsets, weights, start, count, tables[current[k]], factor, block)
                for g in range(len(bounds) - 1):
                    last = block[members[bounds[g + 1] - 1]]
                    for p in range(count):
                        last[p] = constant[start + p]
                    for r in members[bounds[g] : bounds[g + 1] - 1]:
                        for p in range(count):
                            last[p] -= block[r, p]
            for r in range(rows):
                for p in range(count):
                    block[r, p] = share[r] * block[r, p] - unary[r, start + p]
            for g in range(len(bounds) - 1):
                _softmax(block, members[bounds[g] : bounds[g + 1]], count, scratch)
            if iteration == iterations:
                marginals[:, start : start + count] = block[:, :count]
                continue
            for k, (offsets, weights, _, _, tables) in enumerate(kernels):
                target = tables[0 if iteration == 0 else 1 - current[k]]
                splat(offsets, weights, start, count, block, target)
        if iteration > 0:
            current[:] = 1 - current
