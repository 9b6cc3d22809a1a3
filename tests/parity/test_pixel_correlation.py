"""SEAM's pixel correlation module against vectors of the reference implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reference import agrees
from weakseg.ops.pixelcorrelation import pixel_correlation


@pytest.mark.parametrize("block", [1, 5, 42, 512])
def test_forward_and_backward(parity: Any, block: int) -> None:
    vectors = parity("seam/pcm")
    features = torch.from_numpy(vectors["f"]).requires_grad_()
    weight = torch.from_numpy(vectors["weight"]).requires_grad_()
    averaged = pixel_correlation(torch.from_numpy(vectors["cam"]), F.conv2d(features, weight[:, :, None, None]), block)
    agrees(averaged, vectors["out"], absolute=1e-5)

    averaged.backward(torch.from_numpy(vectors["upstream"]))
    assert features.grad is not None
    assert weight.grad is not None
    for gradient, part, name in (
        (features.grad, features.grad[:, ::5], "grad_f"),
        (weight.grad, weight.grad[::4, ::5], "grad_weight"),
    ):
        largest = np.abs(vectors[name]).max()
        agrees(part, vectors[name], relative=1e-4)
        stats = [gradient.double().mean(), gradient.double().std(unbiased=False), gradient.abs().max()]
        agrees(stats, vectors[f"{name}_stats"], relative=1e-4, largest=largest)
    nothing = (features == 0).all(dim=1, keepdim=True).expand_as(features)
    assert nothing.any()
    assert (features.grad[nothing] == 0).all(), "pixels whose features are all zero"
