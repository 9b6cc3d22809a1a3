"""DeepLab v3 on small backbones."""

from __future__ import annotations

import pytest
import torch

from weakseg.methods.base import Segmenter, find_method, means
from weakseg.methods.deeplab_v3 import DeepLabV3
from weakseg.models.registry import BackboneSettings

CLASSES = 2


def segmenter(name: str, decoder: bool = True) -> DeepLabV3:
    torch.manual_seed(0)
    backbone = BackboneSettings(name=name, output_stride=8, weights=None, frozen_stages=1)
    return DeepLabV3(DeepLabV3.Settings(backbone=backbone, rates=(1, 2, 3), decoder=decoder), CLASSES)


def test_is_found_by_its_name() -> None:
    assert find_method(Segmenter, "deeplab_v3") is DeepLabV3


@torch.no_grad()
@pytest.mark.parametrize(("decoder", "size"), [(True, (33, 41)), (False, (5, 6))])
@pytest.mark.parametrize("name", ["small", "mobilenet_v2"])
def test_size_of_the_scores(name: str, decoder: bool, size: tuple[int, int]) -> None:
    assert segmenter(name, decoder).logits({"image": torch.randn(2, 3, 33, 41)}).shape == (2, 1 + CLASSES, *size)


def test_every_parameter_that_learns_is_in_one_group() -> None:
    network = segmenter("small")
    groups = network.param_groups(0.1)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize("decoder", [True, False])
def test_learns_to_tell_two_colours(decoder: bool) -> None:
    network = segmenter("small", decoder).train()
    labels = torch.zeros(4, 16, 16, dtype=torch.uint8)
    labels[:, :, 8:] = 2
    batch = {"image": labels[:, None].float().expand(-1, 3, -1, -1) - 1, "labels": labels}
    optimiser = torch.optim.SGD(network.param_groups(0.001), momentum=0.9)
    losses = []
    for _ in range(30):
        (loss,) = means(network.losses(batch), network.counts(batch)).values()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
