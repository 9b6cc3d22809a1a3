"""How close our numbers are to reference vectors, and what tests feed networks with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from weakseg.ops.activation import normalise_image
from weakseg.ops.pairs import pair_offsets

DEEPLAB = {"absolute": 1e-5, "relative": 1e-4}
"""The tolerance of deeplab.md, section 10."""


def agrees(
    ours: Any, theirs: Any, *, absolute: float = 0.0, relative: float = 0.0, largest: float | None = None
) -> None:
    """Assert |ours − theirs| ≤ absolute + relative · largest at every place; `largest` of |theirs|, unless given."""
    found, expected = (x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (ours, theirs))
    assert found.shape == expected.shape
    scale = np.abs(expected).max() if largest is None else largest
    bound, furthest = absolute + relative * scale, np.abs(found - expected).max()
    assert furthest <= bound, f"{furthest:.3g} apart, at most {bound:.3g} expected"


def as_batch(images: Any) -> Tensor:
    """Normalised images (N, 3, H, W) of uint8 RGB (N, H, W, 3), or of one image without N."""
    images = np.asarray(images)
    return torch.from_numpy(np.stack([normalise_image(image) for image in images.reshape(-1, *images.shape[-3:])]))


def dense(affinities: Tensor, radius: int) -> np.ndarray:
    """The symmetric N × N matrix of affinities (P, h, w), 1 on the diagonal."""
    _, height, width = affinities.shape
    matrix = np.eye(height * width, dtype=np.float32)
    for row, (dy, dx) in zip(affinities.numpy(), pair_offsets(radius), strict=True):
        for y in range(height - dy):
            for x in range(max(0, -dx), min(width, width - dx)):
                first, second = y * width + x, (y + dy) * width + x + dx
                matrix[first, second] = matrix[second, first] = row[y, x]
    return matrix
