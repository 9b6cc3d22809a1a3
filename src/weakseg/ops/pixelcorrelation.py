"""SEAM's pixel correlation module: class maps averaged over pixels with similar features, without an N × N matrix.

Y. Wang, J. Zhang, M. Kan, S. Shan, X. Chen, *Self-supervised Equivariant Attention Mechanism for Weakly Supervised
Semantic Segmentation*, CVPR 2020 (arXiv 2004.04581), section 3.4.

    f̂_i = f_i / (‖f_i‖ + ε),    A = relu(f̂ᵀ f̂),    R_j = Σ_i n_i A_ij / (Σ_i A_ij + ε)

for N pixels with features f (D, N) and maps n (C, N). With M = [n; 1], the maps and a row of ones, one product U = M A
gives the sums and the denominators. It is formed for one block of columns of A after the other, and the backward pass
forms the blocks again: they are never all there at once. As A is symmetric, only what lies on and below the diagonal
is formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-5
BLOCK = 512  # columns of A that are held at once


def pixel_correlation(maps: Tensor, features: Tensor, block: int = BLOCK) -> Tensor:
    """R (N, C, h, w): the mean of the `maps` (N, C, h, w) over all pixels, weighted by the similarity of `features`
    (N, D, h, w). Equals the dense form up to rounding; memory grows with pixels × `block`.

    Gradients flow to both arguments; a pixel whose features are all zero gets none. Computed in float32 (float64 where
    the features are), under autocast too, as ε would be lost in half precision. No second derivatives.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
        unit = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON)
        averaged: Tensor = _Correlation.apply(maps.to(unit).flatten(2), unit, block)
    return averaged.unflatten(2, maps.shape[2:])


class _Correlation(torch.autograd.Function):
    """maps n (N, C, pixels), unit features f̂ (N, D, pixels) → R (N, C, pixels)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, unit: Tensor, block: int) -> Tensor:
        weighed = _with_ones(maps)
        sums = torch.zeros_like(weighed)
        for start, stop, similarity in _similarities(unit, block):
            _add_product(sums, weighed, similarity, start, stop)
        total = sums[:, -1:] + EPSILON
        averaged = sums[:, :-1] / total
        ctx.save_for_backward(maps, unit, averaged, total)
        ctx.block = block
        return averaged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With g = dL/dR and u the row of sums from the ones, G = dL/dU = [g / (u + ε); -Σ_c g_c R_c / (u + ε)].

        dL/dn is the first C rows of G A, and dL/df̂ = f̂ E, where E = Mᵀ G + Gᵀ M where A > 0, symmetric like A, and
        0 elsewhere.
        """
        maps, unit, averaged, total = ctx.saved_tensors
        of_maps = torch.zeros_like(maps) if ctx.needs_input_grad[0] else None
        of_unit = torch.zeros_like(unit) if ctx.needs_input_grad[1] else None
        with torch.autocast(unit.device.type, enabled=False):
            scaled = gradient / total
            of_sums = torch.cat([scaled, -(scaled * averaged).sum(1, keepdim=True)], dim=1)
            weighed = _with_ones(maps)
            rows, columns = torch.cat([weighed, of_sums], dim=1), torch.cat([of_sums, weighed], dim=1)
            for start, stop, similarity in _similarities(unit, ctx.block):
                if of_maps is not None:
                    _add_product(of_maps, scaled, similarity, start, stop)
                if of_unit is not None:
                    of_similarity = rows[..., start:].mT @ columns[..., start:stop]
                    of_similarity *= similarity.sign_()
                    _add_product(of_unit, unit, of_similarity, start, stop)
        return of_maps, of_unit, None


def _with_ones(maps: Tensor) -> Tensor:
    return torch.cat([maps, torch.ones_like(maps[:, :1])], dim=1)


def _similarities(unit: Tensor, block: int) -> Iterator[tuple[int, int, Tensor]]:
    """The columns start … stop of A with its rows from start on, (N, pixels - start, stop - start), block by block."""
    pixels = unit.shape[2]
    for start in range(0, pixels, block):
        stop = min(start + block, pixels)
        yield start, stop, (unit[..., start:].mT @ unit[..., start:stop]).relu_()


def _add_product(result: Tensor, left: Tensor, symmetric: Tensor, start: int, stop: int) -> None:
    """Add to `result` what `symmetric`, a block of a symmetric matrix from its diagonal down, adds to left · matrix:
    as columns start … stop, and below the diagonal, mirrored, as rows."""
    result[..., start:stop] += left[..., start:] @ symmetric
    result[..., stop:] += left[..., start:stop] @ symmetric[:, stop - start :].mT
