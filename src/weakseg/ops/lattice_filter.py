"""Filtering on the permutohedral lattice: splat, blur, slice; alone, or inside the mean field of a dense CRF.

The channels of vertices are stored in chunks of a few lanes, each chunk of a vertex a vector for the processor: tables
are (chunks, M + 1, lanes). Row M of a table is the vertex that is not there; it stays 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weakseg.ops.compiled import (
    compiled,
    gather,
    load,
    maximum,
    power_of_two,
    rounded,
    scatter,
    store,
    transpose,
    vector,
)
from weakseg.ops.permutohedral import FloatArray, IndexArray, Lattice

# Points whose labels are updated together, so that lattice vertices and weights are read once per iteration and
# everything else stays in the L1 cache.
BLOCK = 256
WIDEST = 8
# A tuple of zeros is a number that compiled code is made for: of lanes, of corners.
Zeros = tuple[int, ...]


def _chunks(channels: int) -> tuple[int, Zeros]:
    """How many chunks hold the channels, and as many zeros as a chunk has lanes: 1, 2, 4 or 8."""
    lanes = min(1 << (channels - 1).bit_length(), WIDEST)
    return -(-channels // lanes), (0,) * lanes


def _corners(lattice: Lattice) -> Zeros:
    """As many zeros as a simplex has corners."""
    return (0,) * lattice.offsets.shape[1]


def _table(lattice: Lattice, chunks: int, lanes: Zeros) -> FloatArray:
    """Zeros (chunks, M + 1, lanes); no vector lies in two lines of the cache."""
    line, size = 16, chunks * (lattice.vertices + 1) * len(lanes)
    numbers = np.zeros(size + line, np.float32)
    first = -(numbers.ctypes.data // numbers.itemsize) % line
    return numbers[first : first + size].reshape(chunks, -1, len(lanes))


def gaussian_filter(lattice: Lattice, values: npt.NDArray[Any]) -> FloatArray:
    """F(v): values (C, N) float32 of the lattice's points, blurred with standard deviation 1; (C, N) float32."""
    chunks, lanes = _chunks(len(values))
    rows = np.zeros((lattice.points, chunks * len(lanes)), np.float32)
    rows[:, : len(values)] = values.T
    table, other = _table(lattice, chunks, lanes), _table(lattice, chunks, lanes)
    _splat(lattice.offsets, lattice.weights, rows, table, _corners(lattice), lanes)
    blurred, _ = _blur(lattice.neighbours, np.float32(lattice.gain), table, other, lanes)
    _slice(lattice.offsets, lattice.weights, blurred, rows, _corners(lattice), lanes)
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


@compiled()
def _blur(neighbours: Any, factor: Any, table: Any, other: Any, lanes: Zeros) -> Any:
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


# Mean field -----------------------------------------------------------------------------------------------------------


class PottsKernel(NamedTuple):
    """w K with K v = ν∘F(ν∘v): F is `factor` times splat, blur and slice; `scale` (N,) is ν.

    `total` (N,) is w K 1, what the messages of all labels sum to.
    """

    lattice: Lattice
    scale: FloatArray
    factor: float
    total: FloatArray


def mean_field(
    unaries: Sequence[FloatArray],
    copies: Sequence[npt.NDArray[np.int64]],
    kernels: tuple[PottsKernel, PottsKernel],
    iterations: int,
) -> list[FloatArray]:
    """The marginals (R, N) of several problems with Potts compatibility and the same kernels, after ≥ 1 iterations.

    A row of the unary (R, N) of a problem stands for as many labels as `copies` (R,) says: it holds U - ln n, and its
    marginal is the sum of theirs. The last row of each problem costs no filtering, as its messages are `total` less
    those of the others. At least one problem needs a second row.
    """
    labels = _Labels.of(unaries, copies, kernels[0].total + kernels[1].total)
    rows, points = labels.unary.shape
    chunks, lanes = _chunks(rows - len(unaries))
    near, alike = (_Flow.of(kernel, chunks, lanes) for kernel in kernels)
    marginals = np.empty((rows, points), np.float32)
    _iterate(labels, near, alike, iterations, _Scratch.of(rows, chunks, len(lanes)), marginals, lanes)
    if len(unaries) == 1:
        return [marginals]
    return [marginals[rows] for rows in np.split(labels.members, labels.bounds[1:-1])]


class _Labels(NamedTuple):
    """The rows of all problems. Those of problem g are `members[bounds[g] : bounds[g + 1]]`, the last of them is not
    filtered; filtered rows come first."""

    unary: FloatArray  # (R, N)
    unary_end: FloatArray  # (R, BLOCK): the unary of the points behind the last whole block, and zeros
    total: FloatArray  # (N + zeros)
    share: FloatArray  # (R,): a label's share of its row, 1 / copies
    members: npt.NDArray[np.int64]  # (R,)
    bounds: npt.NDArray[np.int64]  # (problems + 1,)

    @classmethod
    def of(cls, unaries: Sequence[FloatArray], copies: Sequence[npt.NDArray[np.int64]], total: FloatArray) -> _Labels:
        bounds = np.cumsum([0] + [len(unary) for unary in unaries])
        last = np.isin(np.arange(bounds[-1]), bounds[1:] - 1)
        order = np.argsort(last, kind="stable")
        unary = unaries[0] if len(unaries) == 1 else np.concatenate(unaries)[order]
        missing = -len(total) % BLOCK
        end = np.pad(unary[:, len(total) + missing - BLOCK :], ((0, 0), (0, missing)))
        share = (1 / np.concatenate(copies)[order]).astype(np.float32)
        return cls(unary, end, np.pad(total, (0, missing)), share, np.argsort(order), bounds)


class _Flow(NamedTuple):
    """A kernel, and room for what its points spread."""

    offsets: IndexArray
    weights: FloatArray
    neighbours: IndexArray
    scale: FloatArray
    factor: np.float32
    corners: Zeros
    table: FloatArray
    other: FloatArray

    @classmethod
    def of(cls, kernel: PottsKernel, chunks: int, lanes: Zeros) -> _Flow:
        lattice = kernel.lattice
        return cls(
            lattice.offsets,
            lattice.weights,
            lattice.neighbours,
            kernel.scale,
            np.float32(kernel.factor),
            _corners(lattice),
            _table(lattice, chunks, lanes),
            _table(lattice, chunks, lanes),
        )


class _Scratch(NamedTuple):
    """One block of points."""

    values: FloatArray  # (BLOCK, lanes): one chunk of what is gathered or spread
    scores: FloatArray  # (R, BLOCK), with room for all lanes of all chunks: messages, scores, marginals

    @classmethod
    def of(cls, rows: int, chunks: int, lanes: int) -> _Scratch:
        shapes = (BLOCK, lanes), (max(rows, chunks * lanes), BLOCK)
        return cls(*(np.zeros(shape, np.float32) for shape in shapes))


@compiled(fastmath={"contract"})
def _iterate(labels: Any, near: Any, alike: Any, iterations: int, scratch: Any, marginals: Any, lanes: Zeros) -> None:
    """Slice, softmax and splat, block by block, and blur. At the start there is nothing to gather; the end is not
    spread, but written to `marginals`.

    Both kernels at once: while the processor waits for a vertex of one, it works for the other.
    """
    values, scores = scratch
    zero, width = vector(lanes), len(lanes)
    from_near, to_near, from_alike, to_alike = near.table, near.other, alike.table, alike.other
    points = labels.unary.shape[1]
    for iteration in range(iterations + 1):
        for start in range(0, points, BLOCK):
            count = min(BLOCK, points - start)
            for chunk in range(len(from_near) if iteration > 0 else 0):
                first, second = from_near[chunk], from_alike[chunk]
                for p in range(count):
                    i = start + p
                    one = near.scale[i] * gather(first, near.offsets, near.weights, i, near.corners, zero)
                    other = alike.scale[i] * gather(second, alike.offsets, alike.weights, i, alike.corners, zero)
                    store(values, p * width, one + other)
                for p in range(0, count, width):
                    transpose(values, p * width, width, scores, chunk * width * BLOCK + p, BLOCK, zero)
            _softmax(labels, start, count, iteration > 0, scores)
            for chunk in range(len(to_near) if iteration < iterations else 0):
                first, second = to_near[chunk], to_alike[chunk]
                for p in range(0, count, width):
                    transpose(scores, chunk * width * BLOCK + p, BLOCK, values, p * width, width, zero)
                for p in range(count):
                    i, value = start + p, load(values, p * width, zero)
                    scatter(first, near.offsets, near.weights, i, near.corners, near.scale[i] * value)
                    scatter(second, alike.offsets, alike.weights, i, alike.corners, alike.scale[i] * value)
            if iteration == iterations:
                for r in range(len(marginals)):
                    for p in range(count):
                        marginals[r, start + p] = scores[r, p]
        if iteration < iterations:
            from_near, to_near = _blur(near.neighbours, near.factor, to_near, from_near, lanes)
            from_alike, to_alike = _blur(alike.neighbours, alike.factor, to_alike, from_alike, lanes)


POINTS = (0,) * 16  # points whose softmax is computed together
LOG2_E = np.float32(np.log2(np.e))
# 2^f for |f| ≤ ½, with a relative error of 1e-7: the polynomial of degree 5 through the Chebyshev points.
C0, C1, C2, C3, C4, C5 = (
    np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    .convert(kind=np.polynomial.Polynomial)
    .coef.astype(np.float32)
)


@compiled(fastmath={"contract"}, inner=True)
def _softmax(labels: Any, start: int, count: int, receive: bool, scores: Any) -> None:
    """From the messages of a block, none unless `receive`, to the marginals: softmax(share · message - unary)."""
    unary, from_point, stride = labels.unary, start, labels.unary.shape[1]
    if count < BLOCK:
        unary, from_point, stride = labels.unary_end, 0, BLOCK
    zero = vector(POINTS)
    for g in range(len(labels.bounds) - 1):
        members = labels.members[labels.bounds[g] : labels.bounds[g + 1]]
        for p in range(0, count, len(POINTS)):
            rest = load(labels.total, start + p, zero) if receive else zero
            highest = zero - np.float32(np.inf)
            for r in members:
                message = rest
                if r != members[-1]:
                    message = load(scores, r * BLOCK + p, zero) if receive else zero
                    rest = rest - message
                score = labels.share[r] * message - load(unary, r * stride + from_point + p, zero)
                highest = maximum(highest, score)
                store(scores, r * BLOCK + p, score)
            total = zero
            for r in members:
                # e^x = 2^whole 2^f
                exponent = maximum(LOG2_E * (load(scores, r * BLOCK + p, zero) - highest), zero - np.float32(127))
                whole = rounded(exponent)
                f = exponent - whole
                power = power_of_two(whole) * (C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * C5)))))
                total = total + power
                store(scores, r * BLOCK + p, power)
            scale = np.float32(1) / total
            for r in members:
                store(scores, r * BLOCK + p, scale * load(scores, r * BLOCK + p, zero))
