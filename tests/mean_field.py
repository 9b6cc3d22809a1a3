"""Mean field with any kernels, one step at a time and with nothing left out: what `dense_crf` is compared with.

It stands on the library's own lattice filter, which has reference vectors and exact sums of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from weakseg.ops.crf_features import bilateral_features, gaussian_features
from weakseg.ops.crf_parameters import CRFParameters
from weakseg.ops.lattice_filter import gaussian_filter
from weakseg.ops.permutohedral import Lattice


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)


@dataclass(frozen=True)
class PairwiseKernel:
    """K of features (N, d) and the compatibility of its messages.

    With n = F(1): "symmetric" K v = ν∘F(ν∘v), ν = n^-½; "after" ν∘F(v), ν = 1 / n; "before" F(ν∘v); "none" F(v).
    `compatibility` is a number w (Potts: equal labels gain w), or costs: of each label for itself, (L,), or of each
    pair, (L, L), which is symmetrised.
    """

    features: np.ndarray
    compatibility: float | np.ndarray = 1.0
    normalisation: Literal["none", "before", "after", "symmetric"] = "symmetric"

    @cached_property
    def lattice(self) -> Lattice:
        return Lattice.of(self.features)

    @cached_property
    def scale(self) -> np.ndarray:
        """ν (1, N)."""
        mass = gaussian_filter(self.lattice, np.ones((1, self.lattice.points), np.float32)).astype(np.float64) + 1e-20
        return (1 / (np.sqrt(mass) if self.normalisation == "symmetric" else mass)).astype(np.float32)

    def filter(self, values: np.ndarray) -> np.ndarray:
        """K v of values (C, N)."""
        if self.normalisation in ("symmetric", "before"):
            values = self.scale * values
        result = gaussian_filter(self.lattice, values)
        return self.scale * result if self.normalisation in ("symmetric", "after") else result

    def cost(self, marginals: np.ndarray) -> np.ndarray:
        """What the messages of `marginals` (L, N) cost each label at each pixel."""
        messages = self.filter(marginals)
        costs = np.asarray(self.compatibility, np.float32)
        if costs.ndim == 0:
            return -costs * messages
        return costs[:, None] * messages if costs.ndim == 1 else (costs + costs.T) / 2 @ messages


@dataclass(frozen=True)
class MeanField:
    """The mean field of a unary (L, N)."""

    unary: np.ndarray
    kernels: Sequence[PairwiseKernel]

    def start(self) -> np.ndarray:
        return softmax(-self.unary)

    def step(self, marginals: np.ndarray) -> np.ndarray:
        """One update of all pixels."""
        return softmax(-self.unary - sum(kernel.cost(marginals) for kernel in self.kernels))

    def marginals(self, iterations: int) -> np.ndarray:
        """(L, N), after a number of updates."""
        marginals = self.start()
        for _ in range(iterations):
            marginals = self.step(marginals)
        return marginals

    def divergence(self, marginals: np.ndarray) -> float:
        """KL(Q ‖ P) up to a constant, with the pixels' messages to themselves and both directions of every pair:
        Σ Q ln Q + Σ U Q + Σ_m Σ Q C(K_m Q)."""
        possible = marginals > 0
        q = marginals[possible].astype(np.float64)
        pairwise = sum(float((marginals * kernel.cost(marginals)).sum(dtype=np.float64)) for kernel in self.kernels)
        return float((q * np.log(np.maximum(q, 1e-20))).sum() + (q * self.unary[possible]).sum() + pairwise)


def step_by_step(image: np.ndarray, unary: np.ndarray, p: CRFParameters) -> np.ndarray:
    """The marginals (L, H, W) that `dense_crf` should give."""
    height, width = image.shape[:2]
    kernels = [
        PairwiseKernel(gaussian_features(height, width, p.gaussian_sxy), p.gaussian_weight),
        PairwiseKernel(bilateral_features(image, p.bilateral_sxy, p.bilateral_srgb), p.bilateral_weight),
    ]
    return MeanField(unary.reshape(len(unary), -1), kernels).marginals(p.iterations).reshape(unary.shape)
