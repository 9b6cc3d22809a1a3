"""The dense CRF compiled for the CPU: the mean field of one image, on one thread and without the interpreter lock.

Slice, softmax and splat are one pass over blocks of points, for both kernels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
from weakseg.ops.crf_features import Image, bilateral_features, gaussian_features, scale_per_axis
from weakseg.ops.crf_parameters import CRFParameters
from weakseg.ops.crf_problem import Problem
from weakseg.ops.lattice_filter import Zeros, blur, corners_of, gaussian_filter, in_chunks, new_table
from weakseg.ops.permutohedral import FloatArray, IndexArray, Lattice

# Lattices of the Gaussian kernel are kept for images of up to this many pixels, 32 bytes each.
MAX_CACHED_PIXELS = 1 << 19
CACHED_SIZES = 16

# Points whose labels are updated together, so that lattice vertices and weights are read once per iteration and
# everything else stays in the L1 cache.
BLOCK = 256


def mean_field(image: Image, problems: Sequence[Problem], parameters: CRFParameters) -> list[FloatArray]:
    """The marginals (R, N) of the problems of an image, after at least one iteration.

    The last row of each problem costs no filtering, as its messages are what all sum to less those of the others. At
    least one problem needs a second row.
    """
    kernels = _kernels(image, parameters)
    labels = _Labels.of(problems, kernels[0].total + kernels[1].total)
    rows, points = labels.unary.shape
    chunks, lanes = in_chunks(rows - len(problems))
    near, alike = (_Flow.of(kernel, chunks, lanes) for kernel in kernels)
    marginals = np.empty((rows, points), np.float32)
    scratch = _Scratch.of(rows, chunks, len(lanes))
    _iterate(labels, near, alike, parameters.iterations, scratch, marginals, lanes)
    if len(problems) == 1:
        return [marginals]
    return [marginals[rows] for rows in np.split(labels.members, labels.bounds[1:-1])]


# Kernels --------------------------------------------------------------------------------------------------------------


class _Kernel(NamedTuple):
    """w K with K v = ν∘F(ν∘v): F is `factor` times splat, blur and slice; `scale` (N,) is ν.

    `total` (N,) is w K 1, what the messages of all labels sum to.
    """

    lattice: Lattice
    scale: FloatArray
    factor: float
    total: FloatArray

    @classmethod
    def of(cls, features: FloatArray) -> _Kernel:
        """The symmetrically normalised kernel of weight 1: ν = F(1)^-½."""
        lattice = Lattice.of(features)
        mass = gaussian_filter(lattice, np.ones((1, lattice.points), np.float32)).astype(np.float64) + 1e-20
        scale = (1 / np.sqrt(mass)).astype(np.float32)
        return cls(lattice, scale[0], lattice.gain, (scale * gaussian_filter(lattice, scale))[0])

    def times(self, weight: float) -> _Kernel:
        return self._replace(factor=weight * self.factor, total=np.float32(weight) * self.total)


def _kernels(image: Image, parameters: CRFParameters) -> tuple[_Kernel, _Kernel]:
    height, width = image.shape[:2]
    gaussian = _cached_gaussian_kernel if height * width <= MAX_CACHED_PIXELS else _gaussian_kernel
    sx, sy = scale_per_axis(parameters.gaussian_sxy, 2)
    bilateral = _Kernel.of(bilateral_features(image, parameters.bilateral_sxy, parameters.bilateral_srgb))
    return (
        gaussian(height, width, (float(sx), float(sy))).times(parameters.gaussian_weight),
        bilateral.times(parameters.bilateral_weight),
    )


def _gaussian_kernel(height: int, width: int, sxy: tuple[float, float]) -> _Kernel:
    return _Kernel.of(gaussian_features(height, width, sxy))


_cached_gaussian_kernel = lru_cache(CACHED_SIZES)(_gaussian_kernel)


# Iterations -----------------------------------------------------------------------------------------------------------


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
    def of(cls, problems: Sequence[Problem], total: FloatArray) -> _Labels:
        bounds = np.cumsum([0] + [len(problem.unary) for problem in problems])
        last = np.isin(np.arange(bounds[-1]), bounds[1:] - 1)
        order = np.argsort(last, kind="stable")
        unary = problems[0].unary
        if len(problems) > 1:
            unary = np.concatenate([problem.unary for problem in problems])[order]
        missing = -len(total) % BLOCK
        end = np.pad(unary[:, len(total) + missing - BLOCK :], ((0, 0), (0, missing)))
        share = (1 / np.concatenate([problem.copies for problem in problems])[order]).astype(np.float32)
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
    def of(cls, kernel: _Kernel, chunks: int, lanes: Zeros) -> _Flow:
        lattice = kernel.lattice
        return cls(
            lattice.offsets,
            lattice.weights,
            lattice.neighbours,
            kernel.scale,
            np.float32(kernel.factor),
            corners_of(lattice),
            new_table(lattice, chunks, lanes),
            new_table(lattice, chunks, lanes),
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
            from_near, to_near = blur(near.neighbours, near.factor, to_near, from_near, lanes)
            from_alike, to_alike = blur(alike.neighbours, alike.factor, to_alike, from_alike, lanes)


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
