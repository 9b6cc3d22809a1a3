"""ResNet-38 beyond its reference vectors: what learns, dropout, small images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weakseg.models.norm import FixedBatchNorm2d
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.models.resnet38 import ResNet38


@pytest.fixture(scope="module")
def backbone() -> ResNet38:
    torch.manual_seed(0)
    network = build_backbone(BackboneSettings(name="resnet38", output_stride=8, weights=None, frozen_stages=1))
    assert isinstance(network, ResNet38)
    return network


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 1), (17, 23)])
def test_features_of_images_of_any_size(backbone: ResNet38, height: int, width: int) -> None:
    features = backbone(torch.randn(1, 3, height, width))
    sizes = [(-(-height // stride), -(-width // stride)) for stride in backbone.strides]
    assert [tuple(feature.shape[2:]) for feature in features] == sizes
    assert all(feature.min() >= 0 for feature in features)


def test_convolutions_behind_the_frozen_stage_learn_and_normalisation_does_not(backbone: ResNet38) -> None:
    backbone.eval()
    features = backbone(torch.randn(1, 3, 16, 16))
    assert [feature.requires_grad for feature in features] == [False, True, True, True, True]
    features[-1].square().sum().backward()
    with_gradient = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    frozen = set(backbone.stages()[0])
    expected = {
        f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and not any(module in set(block.modules()) for block in frozen)
    }
    assert with_gradient == expected


def test_training_drops_channels_and_keeps_statistics(backbone: ResNet38) -> None:
    images = torch.randn(1, 3, 16, 16)
    before = [norm.running_mean.clone() for norm in backbone.modules() if isinstance(norm, FixedBatchNorm2d)]
    with torch.no_grad():
        backbone.train()
        torch.manual_seed(1)
        one, other = backbone(images), backbone(images)
        backbone.eval()
    # Dropout is in the last stage alone.
    assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
    assert not torch.equal(one[4], other[4])
    after = [norm.running_mean for norm in backbone.modules() if isinstance(norm, FixedBatchNorm2d)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
