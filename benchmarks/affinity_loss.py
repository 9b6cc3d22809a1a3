"""AffinityNet's training loss and its gradient (stride 8, 448 channels): shifted views against gathered pairs.

    python benchmarks/affinity_loss.py [--size 448 448] [--repeats 5] [--threads 1]

The gathering side does as the original: the features of both pixels of all pairs are gathered into (1, 448, 34, pairs)
tensors, and autograd keeps their differences. Both sides start from given features and labels of one image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import measure
from weakseg.methods.affinitynet import affinity_losses, pair_affinities, pairs
from weakseg.methods.base import means
from weakseg.ops.randomwalk import pair_offsets

RADIUS, CHANNELS = 5, 448


def gathered(features: Tensor) -> Tensor:
    height, width = features.shape[-2:]
    margin = RADIUS - 1
    first = torch.arange(height * width).reshape(height, width)[:-margin, margin:-margin].flatten()
    second = torch.stack([first + dy * width + dx for dy, dx in pair_offsets(RADIUS)])
    flat = features.flatten(2)
    ends = torch.index_select(flat, 2, second.flatten()).unflatten(2, second.shape)
    return torch.exp(-(ends - torch.index_select(flat, 2, first)[:, :, None]).abs().mean(1))


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, CHANNELS, *size, generator=generator)
    labels = torch.randint(0, 3, (1, *size), generator=generator).to(torch.uint8)

    def gradient(affinities: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = features.clone().requires_grad_()
        kinds = pairs(labels, RADIUS)
        counts = {name: kind.sum() for name, kind in kinds._asdict().items()}
        terms = means(affinity_losses(affinities(leaf), kinds), counts)
        torch.stack(list(terms.values())).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return {
        "loss and gradient of one image, against gathered pairs": measure.Comparison(
            lambda: gradient(lambda leaf: pair_affinities(leaf, RADIUS)), lambda: gradient(gathered)
        )
    }


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=8, tolerance=1e-6)
