"""Contrast of pixels with prototypes of segments, without a matrix of all pixels and all prototypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 1 << 20
"""So many similarities of pixels and prototypes exist at once."""


def contrastive_loss(
    pixels: Tensor,
    prototypes: Tensor,
    own: Tensor,
    same: Tensor,
    group: Tensor,
    concentration: float,
    *,
    own_only: bool = False,
) -> Tensor:
    """The sum over unit vectors `pixels` (P, D) of

        L(x) = -log( Σ_{P⁺} s / (Σ_{P⁺} s + Σ_{P⁻} s) ),  s_q = exp(κ x · p_q)

    over `prototypes` (S, D) of length 1 at most. Pixel i is of the segment of prototype own[i]. P⁻ are those that
    are not the same, P⁺ the others that are; if there are none, or with `own_only`, P⁺ is the own one alone. Which are
    the same depends on the group of a pixel: `same` (G, S) is a table, `group` (P,) the row of each pixel.

    Pixels come in blocks, each against all prototypes; the gradient of a block is found together with its loss.
    """
    return _ContrastiveLoss.apply(pixels, prototypes, own, same, group, concentration, own_only)


class _ContrastiveLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        prototypes: Tensor,
        own: Tensor,
        same: Tensor,
        group: Tensor,
        concentration: float,
        own_only: bool,
    ) -> Tensor:
        learning = any(ctx.needs_input_grad[:2])
        to_pixels, to_prototypes = torch.empty_like(pixels), torch.zeros_like(prototypes)
        own_is_same = same[group, own]
        lonely = torch.ones_like(own_is_same) if own_only else same.sum(1)[group] == own_is_same
        total = pixels.new_zeros(())
        step = max(1, BLOCK // max(1, len(prototypes)))
        for start in range(0, len(pixels), step):
            rows = slice(start, start + step)
            x, alone, column = pixels[rows], lonely[rows], own[rows, None]
            # Similarities are at most 1, so that no sum of s / e^κ overflows.
            s = (concentration * x @ prototypes.T).sub_(concentration).exp_()
            table = same.index_select(0, group[rows])
            own_s = s.gather(1, column)[:, 0]
            s.scatter_(1, column, 0)
            own_positive = own_s * alone
            own_negative = own_s * ~own_is_same[rows]
            if own_only:
                s.masked_fill_(table, 0)
            positive = own_positive + (s * table).sum(1)
            both = own_positive + own_negative + s.sum(1)
            total += (both.log() - positive.log()).sum()
            if learning:
                of_all, of_positive = 1 / both, 1 / both - 1 / positive
                s.mul_(torch.where(table, of_positive[:, None], of_all[:, None]))
                s.scatter_(1, column, (own_positive * of_positive + own_negative * of_all)[:, None])
                s.mul_(concentration)
                torch.mm(s, prototypes, out=to_pixels[rows])
                to_prototypes.addmm_(s.T, x)
        ctx.save_for_backward(to_pixels, to_prototypes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        to_pixels, to_prototypes = ctx.saved_tensors
        return upstream * to_pixels, upstream * to_prototypes, None, None, None, None, None


def shared(sets: Tensor, others: Tensor) -> Tensor:
    """Whether sets (G, C) and others (S, C), as truth values, have a member in common: (G, S)."""
    return sets.float() @ others.float().T > 0


def propagated_labels(
    prototypes: Tensor,
    labels: Tensor,
    images: Tensor,
    classes: int,
    threshold: float = 0.95,
    neighbours: int = 1,
) -> Tensor:
    """The labels, as truth values (S, classes), that each segment takes from the most similar labelled segments of its
    image, if their similarity is at least `threshold`.

    `prototypes` (S, D) are of length 1, `labels` (S,) below `classes` where there is one, `images` (S,). A segment that
    is not similar to any labelled one takes none.
    """
    found = torch.zeros(len(prototypes), classes, dtype=torch.bool, device=prototypes.device)
    for image in images.unique():
        here = (images == image).nonzero()[:, 0]
        known = here[labels[here] < classes]
        if len(known) == 0:
            continue
        similarity, nearest = (prototypes[here] @ prototypes[known].T).topk(min(neighbours, len(known)))
        one_hot = F.one_hot(labels[known][nearest], classes).bool()
        found[here] = (one_hot & (similarity >= threshold)[..., None]).any(1)
    return found
