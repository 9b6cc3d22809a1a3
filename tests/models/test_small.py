from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.models.small import SmallResNet


@pytest.fixture(scope="module")
def networks() -> dict[int, SmallResNet]:
    torch.manual_seed(0)
    return {stride: SmallResNet(output_stride=stride).eval() for stride in (8, 16, 32)}


@given(stride=st.sampled_from([8, 16, 32]), height=st.integers(1, 70), width=st.integers(1, 70))
@settings(max_examples=25, deadline=None)
def test_sizes_of_the_features(networks: dict[int, SmallResNet], stride: int, height: int, width: int) -> None:
    network = networks[stride]
    assert network.strides == tuple(min(2**stage, stride) for stage in range(1, 6))
    with torch.no_grad():
        features = network(torch.randn(2, 3, height, width))
    expected = [
        (2, channels, -(-height // s), -(-width // s))
        for channels, s in zip(network.channels, network.strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in features] == expected
    assert all(bool(feature.isfinite().all()) for feature in features)


def test_an_impossible_output_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="output stride 12"):
        SmallResNet(output_stride=12)


@pytest.mark.parametrize("training", [False, True])
def test_an_image_does_not_see_the_rest_of_its_batch(networks: dict[int, SmallResNet], training: bool) -> None:
    network = networks[8].train(training)
    images = torch.randn(4, 3, 40, 56) * torch.tensor([0.1, 1.0, 3.0, 10.0])[:, None, None, None]
    with torch.no_grad():
        together = network(images)
        alone = [network(image[None]) for image in images]
    for stage, feature in enumerate(together):
        torch.testing.assert_close(feature, torch.cat([features[stage] for features in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", range(6))
def test_frozen_stages_get_no_gradient_and_the_others_do(frozen: int) -> None:
    network = SmallResNet()
    network.freeze(frozen)
    features = network(torch.randn(1, 3, 32, 32))
    assert [feature.requires_grad for feature in features] == [stage >= frozen for stage in range(5)]
    if frozen < 5:
        features[-1].square().mean().backward()
    for stage, modules in enumerate(network.stages()):
        for parameter in nn.ModuleList(modules).parameters():
            assert (parameter.grad is not None) == (stage >= frozen)


def test_every_parameter_belongs_to_one_stage() -> None:
    network = SmallResNet()
    in_stages = [id(p) for modules in network.stages() for p in nn.ModuleList(modules).parameters()]
    assert sorted(in_stages) == sorted(id(p) for p in network.parameters())


def stripes(count: int) -> tuple[Tensor, Tensor]:
    """Noisy images (count, 3, 32, 32) with horizontal (0) or vertical (1) stripes: no single pixel tells which."""
    generator = torch.Generator().manual_seed(0)
    which = torch.arange(count) % 2
    wave = torch.sin(torch.arange(32) * 1.1 + 6.28 * torch.rand(count, 1, generator=generator))
    images = torch.where(which.bool()[:, None, None], wave[:, None, :], wave[:, :, None]).expand(count, 32, 32)
    return images[:, None] + 0.5 * torch.randn(count, 3, 32, 32, generator=generator), which


@pytest.mark.parametrize("head_lr_factor", [1.0, 10.0])
def test_learns_fast_at_the_rates_of_the_recipes(head_lr_factor: float) -> None:
    """The backbone at 0.05 and a classifier at up to ten times as much: no divergence, and soon no mistakes."""
    torch.manual_seed(0)
    network, classifier = SmallResNet(), nn.Conv2d(128, 2, 1)
    optimiser = torch.optim.SGD(
        [
            {"params": network.parameters(), "lr": 0.05},
            {"params": classifier.parameters(), "lr": 0.05 * head_lr_factor},
        ],
        momentum=0.9,
    )
    images, which = stripes(64)
    for step in range(40):
        part = slice(8 * step % 64, 8 * step % 64 + 8)
        loss = F.cross_entropy(classifier(network(images[part])[-1]).mean((2, 3)), which[part])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        scores = classifier(network(images)[-1]).mean((2, 3))
    assert F.cross_entropy(scores, which) < 0.1
    assert bool((scores.argmax(1) == which).all())
