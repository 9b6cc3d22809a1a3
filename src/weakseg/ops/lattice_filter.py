"""Filtering on the permutohedral lattice: splat, blur, slice; alone, or inside the mean field of a dense CRF.

The channels of points and of vertices are stored in chunks of a few lanes, each chunk a vector for the processor:
values of points are (chunks, N, lanes), tables of vertices (chunks, M + 1, lanes). Row M of a table is the vertex that
is not there; it stays 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weakseg.ops.compiled import compiled, float_of_bits, load, multiply_add, store, vector
from weakseg.ops.permutohedral import FloatArray, IndexArray, Lattice

# Points whose labels are updated together, so that lattice vertices and weights are read once per iteration and
# everything else stays in the L1 cache.
BLOCK = 256
WIDEST = 8


def _chunks(channels: int) -> tuple[int, tuple[int, ...]]:
    """How many chunks hold the channels, and as many zeros as a chunk has lanes: 1, 2, 4 or 8."""
    lanes = min(1 << (channels - 1).bit_length(), WIDEST)
    return -(-channels // lanes), (0,) * lanes


def _table(lattice: Lattice, chunks: int, lanes: tuple[int, ...]) -> FloatArray:
    return np.zeros((chunks, lattice.vertices + 1, len(lanes)), np.float32)


def gaussian_filter(lattice: Lattice, values: npt.NDArray[Any]) -> FloatArray:
    """F(v): values (C, N) float32 of the lattice's points, blurred with standard deviation 1; (C, N) float32."""
    chunks, lanes = _chunks(len(values))
    rows = np.zeros((chunks, lattice.points, len(lanes)), np.float32)
    for c, channel in enumerate(values):
        rows[c // len(lanes), :, c % len(lanes)] = channel
    table, other = _table(lattice, chunks, lanes), _table(lattice, chunks, lanes)
    _splat(lattice.offsets, lattice.weights, 0, lattice.points, rows, table, lanes)
    blurred, _ = _blur(lattice.neighbours, table, other, lanes)
    rows[:] = 0
    _slice(lattice.offsets, lattice.weights, 0, lattice.points, blurred, np.float32(lattice.gain), rows, lanes)
    return np.stack([rows[c // len(lanes), :, c % len(lanes)] for c in range(len(values))])


# The loop over a point's vertices is unrolled where their number is constant: 3 for positions, 6 with RGB colours.


@compiled()
def _splat(offsets: Any, weights: Any, start: int, count: int, values: Any, table: Any, lanes: tuple[int, ...]) -> None:
    """Add what `count` points, from `start` on, spread of their `values` to `table`."""
    corners = offsets.shape[1]
    for chunk in range(len(table)):
        if corners == 3:
            _splat_chunk(offsets, weights, start, count, values[chunk], table[chunk], lanes, 3)
        elif corners == 6:
            _splat_chunk(offsets, weights, start, count, values[chunk], table[chunk], lanes, 6)
        else:
            _splat_chunk(offsets, weights, start, count, values[chunk], table[chunk], lanes, corners)


@compiled(inner=True, forceinline=True)
def _splat_chunk(
    offsets: Any, weights: Any, start: int, count: int, values: Any, table: Any, lanes: Any, corners: int
) -> None:
    zero = vector(lanes)
    for p in range(count):
        value = load(values, p, zero)
        for k in range(corners):
            row = offsets[start + p, k]
            store(table, row, multiply_add(load(table, row, zero), weights[start + p, k], value))


@compiled()
def _slice(
    offsets: Any, weights: Any, start: int, count: int, table: Any, factor: Any, values: Any, lanes: tuple[int, ...]
) -> None:
    """Add `factor` times what `count` points, from `start` on, gather from `table` to their `values`."""
    corners = offsets.shape[1]
    for chunk in range(len(table)):
        if corners == 3:
            _slice_chunk(offsets, weights, start, count, table[chunk], factor, values[chunk], lanes, 3)
        elif corners == 6:
            _slice_chunk(offsets, weights, start, count, table[chunk], factor, values[chunk], lanes, 6)
        else:
            _slice_chunk(offsets, weights, start, count, table[chunk], factor, values[chunk], lanes, corners)


@compiled(inner=True, forceinline=True)
def _slice_chunk(
    offsets: Any, weights: Any, start: int, count: int, table: Any, factor: Any, values: Any, lanes: Any, corners: int
) -> None:
    zero = vector(lanes)
    for p in range(count):
        total = zero
        for k in range(corners):
            total = multiply_add(total, weights[start + p, k], load(table, offsets[start + p, k], zero))
        store(values, p, multiply_add(load(values, p, zero), factor, total))


def _blur(
    neighbours: IndexArray, table: FloatArray, other: FloatArray, lanes: tuple[int, ...]
) -> tuple[FloatArray, FloatArray]:
    """Mix neighbours along each axis in turn, from `table` to `other` and back; the result, and the one left over."""
    for source, target in zip(table, other, strict=True):  # chunk by chunk: smaller tables stay in the cache
        for axis in neighbours:
            _blur_axis(axis, source, target, lanes)
            source, target = target, source
    return (table, other) if len(neighbours) % 2 == 0 else (other, table)


@compiled()
def _blur_axis(neighbours: Any, source: Any, target: Any, lanes: tuple[int, ...]) -> None:
    zero, half = vector(lanes), np.float32(0.5)
    for row in range(neighbours.shape[1]):
        value = multiply_add(load(source, row, zero), half, load(source, neighbours[0, row], zero))
        store(target, row, multiply_add(value, half, load(source, neighbours[1, row], zero)))


# Mean field -----------------------------------------------------------------------------------------------------------


class PottsKernel(NamedTuple):
    """w K with K v = ν∘F(ν∘v): `factor` times splat, blur and slice, as the lattice's weights hold ν.

    `total` (N,) is w K 1, what the messages of all labels sum to.
    """

    lattice: Lattice
    factor: float
    total: FloatArray


def mean_field(
    unaries: Sequence[FloatArray],
    copies: Sequence[npt.NDArray[np.int64]],
    kernels: Sequence[PottsKernel],
    iterations: int,
) -> list[FloatArray]:
    """The marginals (R, N) of several problems with Potts compatibility and the same kernels, after ≥ 1 iterations.

    A row of the unary (R, N) of a problem stands for as many labels as `copies` (R,) says: it holds U - ln n, and its
    marginal is the sum of theirs. The last row of each problem costs no filtering, as its messages are `total` less
    those of the others. At least one problem needs a second row.
    """
    labels = _Labels.of(unaries, copies, np.sum([kernel.total for kernel in kernels], axis=0))
    chunks, lanes = _chunks(len(labels.unary) - len(unaries))
    scratch = _Scratch.of(chunks, len(lanes), len(labels.unary), len(unaries))
    marginals = np.empty_like(labels.unary)
    sources, targets = ([_table(kernel.lattice, chunks, lanes) for kernel in kernels] for _ in range(2))
    for iteration in range(iterations + 1):
        flows = tuple(
            _Flow(kernel.lattice.offsets, kernel.lattice.weights, np.float32(kernel.factor), source, target)
            for kernel, source, target in zip(kernels, sources, targets, strict=True)
        )
        _update(labels, flows, iteration > 0, iteration < iterations, scratch, marginals, lanes)
        if iteration < iterations:
            for k, kernel in enumerate(kernels):
                sources[k], targets[k] = _blur(kernel.lattice.neighbours, targets[k], sources[k], lanes)
                targets[k][:] = 0
    if len(unaries) == 1:
        return [marginals]
    return [marginals[rows] for rows in np.split(labels.members, labels.bounds[1:-1])]


class _Labels(NamedTuple):
    """The rows of all problems. Those of problem g are `members[bounds[g] : bounds[g + 1]]`, the last of them is not
    filtered; filtered rows come first."""

    unary: FloatArray  # (R, N)
    share: FloatArray  # (R,): a label's share of its row, 1 / copies
    members: npt.NDArray[np.int64]  # (R,)
    bounds: npt.NDArray[np.int64]  # (problems + 1,)
    total: FloatArray  # (N,)

    @classmethod
    def of(cls, unaries: Sequence[FloatArray], copies: Sequence[npt.NDArray[np.int64]], total: FloatArray) -> _Labels:
        bounds = np.cumsum([0] + [len(unary) for unary in unaries])
        last = np.isin(np.arange(bounds[-1]), bounds[1:] - 1)
        order = np.argsort(last, kind="stable")
        unary = unaries[0] if len(unaries) == 1 else np.concatenate(unaries)[order]
        share = (1 / np.concatenate(copies)[order]).astype(np.float32)
        return cls(unary, share, np.argsort(order), bounds, total)


class _Flow(NamedTuple):
    """What a kernel's points gather from (`source`) and spread to (`target`)."""

    offsets: IndexArray
    weights: FloatArray
    factor: np.float32
    source: FloatArray
    target: FloatArray


class _Scratch(NamedTuple):
    """One block of points."""

    messages: FloatArray  # (chunks, BLOCK, lanes)
    scores: FloatArray  # (R, BLOCK)
    highest: FloatArray  # (BLOCK,)
    scale: FloatArray  # (problems, BLOCK): brings the sum of the exponentials to 1

    @classmethod
    def of(cls, chunks: int, lanes: int, rows: int, problems: int) -> _Scratch:
        shapes = (chunks, BLOCK, lanes), (rows, BLOCK), (BLOCK,), (problems, BLOCK)
        return cls(*(np.empty(shape, np.float32) for shape in shapes))


@compiled(fastmath={"contract"})
def _update(
    labels: Any, flows: Any, gather: bool, spread: bool, scratch: Any, marginals: Any, lanes: tuple[int, ...]
) -> None:
    """Slice, softmax and splat, block by block. At the start there is nothing to gather; the end is not spread, but
    written to `marginals`."""
    messages, scores, _, scale = scratch
    points = labels.unary.shape[1]
    for start in range(0, points, BLOCK):
        count = min(BLOCK, points - start)
        messages[:] = 0
        if gather:
            for flow in flows:
                _slice(flow.offsets, flow.weights, start, count, flow.source, flow.factor, messages, lanes)
        for g in range(len(labels.bounds) - 1):
            first, last = labels.bounds[g], labels.bounds[g + 1] - 1
            _score(labels, first, last, start, count, gather, scratch)
            _exponentiate(labels.members[first : last + 1], count, scratch, scale[g])
            for r in labels.members[first : last if spread else last + 1]:
                chunk, lane = r // len(lanes), r % len(lanes)
                for p in range(count):
                    marginal = scores[r, p] * scale[g, p]
                    if spread:
                        messages[chunk, p, lane] = marginal
                    else:
                        marginals[r, start + p] = marginal
        if spread:
            for flow in flows:
                _splat(flow.offsets, flow.weights, start, count, messages, flow.target, lanes)


@compiled(fastmath={"contract"}, inner=True)
def _score(labels: Any, first: int, last: int, start: int, count: int, gather: bool, scratch: Any) -> None:
    """Scores of the rows `members[first : last + 1]`: messages - unary; and the highest of them at each point."""
    messages, scores, highest, _ = scratch
    lanes = messages.shape[2]
    rest = labels.members[last]
    for p in range(count):
        highest[p] = -np.inf
        scores[rest, p] = labels.total[start + p] if gather else np.float32(0)
    for r in labels.members[first:last]:
        chunk, lane, share = r // lanes, r % lanes, labels.share[r]
        for p in range(count):
            scores[r, p] = messages[chunk, p, lane]
        for p in range(count):
            scores[rest, p] -= scores[r, p]
        for p in range(count):
            scores[r, p] = share * scores[r, p] - labels.unary[r, start + p]
            highest[p] = np.maximum(highest[p], scores[r, p])  # max() would not become a vector instruction
    share = labels.share[rest]
    for p in range(count):
        scores[rest, p] = share * scores[rest, p] - labels.unary[rest, start + p]
        highest[p] = np.maximum(highest[p], scores[rest, p])


LOG2_E = np.float32(np.log2(np.e))
UNDERFLOW = np.float32(-87)  # exp is taken as 0 below
# 2^f for |f| ≤ ½, with a relative error of 1e-7: the polynomial of degree 5 through the Chebyshev points.
C0, C1, C2, C3, C4, C5 = (
    np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    .convert(kind=np.polynomial.Polynomial)
    .coef.astype(np.float32)
)


@compiled(fastmath={"contract"}, inner=True)
def _exponentiate(members: Any, count: int, scratch: Any, scale: Any) -> None:
    """exp(score - highest) of the rows `members`, in place, and one over their sum, to `scale`.

    exp is written out, e^x = 2^whole 2^f, so that the loop over points becomes vector instructions.
    """
    scores, highest = scratch.scores, scratch.highest
    for p in range(count):
        scale[p] = 0
    for r in members:
        for p in range(count):
            x = scores[r, p] - highest[p]
            exponent = np.maximum(x, UNDERFLOW) * LOG2_E
            whole = np.rint(exponent)
            f = exponent - whole
            power = float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
            power *= C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * C5))))
            scores[r, p] = power if x > UNDERFLOW else np.float32(0)
            scale[p] += scores[r, p]
    for p in range(count):
        scale[p] = np.float32(1) / scale[p]
