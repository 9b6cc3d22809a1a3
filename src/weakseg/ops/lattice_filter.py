"""Filtering on the permutohedral lattice: splat, blur, slice.

The channels of vertices are stored in chunks of a few lanes, each chunk of a vertex a vector for the processor: tables
are (chunks, M + 1, lanes). Row M of a table is the vertex that is not there; it stays 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.ops.compiled import compiled, gather, load, scatter, store, vector
from weakseg.ops.permutohedral import FloatArray, Lattice

WIDEST = 8
# A tuple of zeros is a number that compiled code is made for: of lanes, of corners.
Zeros = tuple[int, ...]


def in_chunks(channels: int) -> tuple[int, Zeros]:
    """How many chunks hold the channels, and as many zeros as a chunk has lanes: 1, 2, 4 or 8."""
    lanes = min(1 << (channels - 1).bit_length(), WIDEST)
    return -(-channels // lanes), (0,) * lanes


def corners_of(lattice: Lattice) -> Zeros:
    """As many zeros as a simplex has corners."""
    return (0,) * lattice.offsets.shape[1]


def new_table(lattice: Lattice, chunks: int, lanes: Zeros) -> FloatArray:
    """Zeros (chunks, M + 1, lanes); no vector lies in two lines of the cache."""
    line, size = 16, chunks * (lattice.vertices + 1) * len(lanes)
    numbers = np.zeros(size + line, np.float32)
    first = -(numbers.ctypes.data // numbers.itemsize) % line
    return numbers[first : first + size].reshape(chunks, -1, len(lanes))


def gaussian_filter(lattice: Lattice, values: npt.NDArray[Any]) -> FloatArray:
    """F(v): values (C, N) float32 of the lattice's points, blurred with standard deviation 1; (C, N) float32."""
    chunks, lanes = in_chunks(len(values))
    rows = np.zeros((lattice.points, chunks * len(lanes)), np.float32)
    rows[:, : len(values)] = values.T
    table, other = new_table(lattice, chunks, lanes), new_table(lattice, chunks, lanes)
    _splat(lattice.offsets, lattice.weights, rows, table, corners_of(lattice), lanes)
    blurred, _ = blur(lattice.neighbours, np.float32(lattice.gain), table, other, lanes)
    _slice(lattice.offsets, lattice.weights, blurred, rows, corners_of(lattice), lanes)
    return np.ascontiguousarray(rows[:, : len(values)].T)


@compiled()
def _splat(offsets: Any, weights: Any, values: Any, table: Any, corners: Zeros, lanes: Zeros) -> None:
    """Add what points spread of their `values` (N, chunks · lanes) to `table`."""
    for point in range(len(offsets)):
        for chunk in range(len(table)):
            value = load(values, (point * len(table) + chunk) * len(lanes), vector(lanes))
            scatter(table[chunk], offsets, weights, point, corners, value)


@compiled()
def _slice(offsets: Any, weights: Any, table: Any, values: Any, corners: Zeros, lanes: Zeros) -> None:
    """What points gather from `table`, to their `values` (N, chunks · lanes)."""
    for point in range(len(offsets)):
        for chunk in range(len(table)):
            value = gather(table[chunk], offsets, weights, point, corners, vector(lanes))
            store(values, (point * len(table) + chunk) * len(lanes), value)


@compiled(fastmath={"contract"})
def blur(neighbours: Any, factor: Any, table: Any, other: Any, lanes: Zeros) -> Any:
    """Mix neighbours along each axis in turn, from `table` to `other` and back, and multiply the result by `factor`;
    the result, and zeros in what is left over."""
    zero, width, axes = vector(lanes), len(lanes), len(neighbours)
    for chunk in range(len(table)):  # one after the other: smaller tables stay in the cache
        source, target = table[chunk], other[chunk]
        for axis in range(axes):
            one = factor if axis == axes - 1 else np.float32(1)
            half = one / np.float32(2)
            for row in range(neighbours.shape[2]):
                before = load(source, neighbours[axis, 0, row] * width, zero)
                after = load(source, neighbours[axis, 1, row] * width, zero)
                store(target, row * width, one * load(source, row * width, zero) + half * before + half * after)
            source, target = target, source
        for row in range(neighbours.shape[2]):
            store(target, row * width, zero)
    return (table, other) if axes % 2 == 0 else (other, table)
