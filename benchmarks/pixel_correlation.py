"""SEAM's pixel correlation at N = 11,750 (an image of 375 × 500 at scale 2): blocks against the dense form.

    python benchmarks/pixel_correlation.py [--size 375 500] [--repeats 5] [--threads 1]

The dense side is the paper's formula in torch. "inference" is the forward pass; "training" adds the backward pass down
to the features, in which our side forms its blocks again. 21 maps, 192 features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import measure
from weakseg.ops.pixelcorrelation import EPSILON, pixel_correlation

MAPS, FEATURES = 21, 192
Correlation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def dense_correlation(maps: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(2)
    unit = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + EPSILON)
    similarity = torch.relu(unit.mT @ unit)
    similarity = similarity / (similarity.sum(1, keepdim=True) + EPSILON)
    return (maps.flatten(2) @ similarity).reshape(maps.shape)


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, MAPS, *size, generator=generator)
    features = torch.randn(1, FEATURES, *size, generator=generator, requires_grad=True)
    upstream = torch.randn(1, MAPS, *size, generator=generator)

    def inference(correlation: Correlation) -> torch.Tensor:
        with torch.no_grad():
            return correlation(maps, features)

    def training(correlation: Correlation) -> torch.Tensor:
        """The gradient of the features, over its largest value."""
        (gradient,) = torch.autograd.grad(correlation(maps, features), features, upstream)
        return gradient / gradient.abs().max()

    def compare(run: Callable[[Correlation], torch.Tensor]) -> measure.Comparison:
        return measure.Comparison(lambda: run(pixel_correlation), lambda: run(dense_correlation), 3)

    return {"inference, blocks against dense": compare(inference), "training, blocks against dense": compare(training)}


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=4, tolerance=1e-4)
