from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from weakseg.models.norm import FixedBatchNorm2d, fold_norms
from weakseg.models.registry import BACKBONES, BackboneSettings, build_backbone


def with_random_norms(name: str) -> nn.Module:
    """A backbone none of whose normalisations is the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSettings(name=name, output_stride=8, weights=None)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            module.weight.data = torch.rand(count) + 0.5
            module.bias.data = torch.randn(count) / 4
            module.running_mean, module.running_var = torch.randn(count) / 4, torch.rand(count) + 0.5
    return backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_networks_compute_the_same(name: str) -> None:
    backbone = with_random_norms(name)
    folded = copy.deepcopy(backbone)
    fold_norms(folded)
    images = torch.randn(1, 3, 33, 47)
    with torch.inference_mode():
        for ours, expected in zip(folded(images), backbone(images), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_every_normalisation_of_a_mobilenet_is_folded() -> None:
    backbone = with_random_norms("mobilenet_v2")
    fold_norms(backbone)
    assert not [module for module in backbone.modules() if isinstance(module, FixedBatchNorm2d)]


def test_a_normalisation_of_something_else_stays() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), FixedBatchNorm2d(2), nn.Conv2d(2, 2, 1)).eval()
    expected = copy.deepcopy(network)
    fold_norms(network)
    assert network.state_dict().keys() == expected.state_dict().keys()
