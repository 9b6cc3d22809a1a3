from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from weakseg.models.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet50, resnet101

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_names(blocks: tuple[int, ...], convolutions: int, projected_first: bool) -> Iterator[str]:
    """The names of the state of torchvision's ResNets without `fc`."""
    yield "conv1.weight"
    yield from (f"bn1.{part}" for part in NORM)
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{layer}.{block}."
            for number in range(1, convolutions + 1):
                yield f"{prefix}conv{number}.weight"
                yield from (f"{prefix}bn{number}.{part}" for part in NORM)
            if block == 0 and (layer > 1 or projected_first):
                yield f"{prefix}downsample.0.weight"
                yield from (f"{prefix}downsample.1.{part}" for part in NORM)


@pytest.mark.parametrize(
    ("build", "blocks", "convolutions", "parameters"),
    [
        # torchvision's documented number of parameters, less those of its classifier of 1,000 classes
        (resnet18, (2, 2, 2, 2), 2, 11_689_512 - 513_000),
        (resnet50, (3, 4, 6, 3), 3, 25_557_032 - 2_049_000),
        (resnet101, (3, 4, 23, 3), 3, 44_549_160 - 2_049_000),
    ],
)
def test_state_is_that_of_torchvision(
    build: Callable[[], ResNet], blocks: tuple[int, ...], convolutions: int, parameters: int
) -> None:
    network = build()
    assert set(network.state_dict()) == set(torchvision_names(blocks, convolutions, convolutions == 3))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_bottlenecks_have_their_stride_in_the_3x3_convolution() -> None:
    block = resnet50(output_stride=32).layer2[0]
    assert isinstance(block, Bottleneck)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize("block", [BasicBlock(64, 64, 1, 1, 1), Bottleneck(256, 64, 1, 1, 1)])
def test_a_new_block_is_the_identity_of_its_positive_part(block: nn.Module) -> None:
    x = torch.randn(1, 64 if isinstance(block, BasicBlock) else 256, 5, 7)
    assert torch.equal(block(x), x.relu())
