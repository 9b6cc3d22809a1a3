"""The size of the features is known before they are computed."""

from __future__ import annotations

import pytest
import torch

from weakseg.models.registry import BACKBONES

SIZES = [(33, 50), (17, 1), (8, 9)]


@pytest.fixture(params=BACKBONES, scope="module")
def backbone(request: pytest.FixtureRequest) -> torch.nn.Module:
    return BACKBONES[request.param](8, True).eval()


@pytest.mark.parametrize("size", SIZES)
def test_the_size_told_is_the_size_found(backbone: torch.nn.Module, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert backbone.output_size(size) == tuple(backbone(torch.zeros(1, 3, *size))[-1].shape[-2:])
