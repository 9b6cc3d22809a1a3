"""SEAM's pixel correlation: blocks of columns against the dense N × N form.

    python benchmarks/pixel_correlation.py [--size 375 500] [--repeats 5] [--threads 2]

N = 11,750 is an image of 375 × 500 at scale 2. The dense side is the paper's formula in torch. "inference" is the
forward pass; "training" adds the backward pass down to the features, in which our side forms its blocks again. 21 maps,
192 features.
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

    def floor(passes: int) -> Callable[[float], str]:
        """One product of features and one of maps with each block on and below the diagonal, forward."""
        pixels = size[0] * size[1]
        operations = 2 * (FEATURES / 2 + MAPS + 1) * pixels**2 * passes
        return lambda seconds: (
            f"{operations / 1e9:.0f} GFLOP at {operations / seconds / 1e9:.0f} GFLOP/s; a product of matrices alone "
            f"reaches {measure.matrix_rate():.0f}"
        )

    def compare(run: Callable[[Correlation], torch.Tensor], floor: Callable[[float], str]) -> measure.Comparison:
        ours, dense = (lambda: run(pixel_correlation)), (lambda: run(dense_correlation))
        return measure.Comparison(ours, dense, 3, target=1, memory_target=8, floor=floor)

    return {"PCM, inference": compare(inference, floor(1)), "PCM, training": compare(training, floor(4))}


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=4, tolerance=1e-4, threads=2)
