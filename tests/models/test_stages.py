"""What holds for the stages of every family of backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from weakseg.models.mobilenet import MobileNetV2
from weakseg.models.norm import FixedBatchNorm2d, closing_norm
from weakseg.models.resnet import resnet18, resnet50
from weakseg.models.stages import StagedBackbone, plan_stages

FAMILIES: dict[str, Callable[..., StagedBackbone]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": MobileNetV2,
}
family = pytest.mark.parametrize("name", FAMILIES)


def randomise(network: nn.Module) -> None:
    """Random normalisations, so that no branch is switched off."""
    for module in network.modules():
        if isinstance(module, FixedBatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def build(name: str, **options: Any) -> StagedBackbone:
    torch.manual_seed(0)
    network = FAMILIES[name](**options)
    randomise(network)
    return network.eval()


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, int], StagedBackbone]:
    return {(name, stride): build(name, output_stride=stride) for name in FAMILIES for stride in (8, 16, 32)}


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    stride=st.sampled_from([8, 16, 32]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
)
@settings(max_examples=25, deadline=None)
def test_sizes_of_the_features(
    networks: dict[tuple[str, int], StagedBackbone], name: str, stride: int, height: int, width: int
) -> None:
    network = networks[name, stride]
    assert network.strides == tuple(min(2**stage, stride) for stage in range(1, 6))
    with torch.inference_mode():
        features = network(torch.zeros(1, 3, height, width))
    expected = [(1, c, -(-height // s), -(-width // s)) for c, s in zip(network.channels, network.strides, strict=True)]
    assert [tuple(f.shape) for f in features] == expected


@family
@pytest.mark.parametrize("size", [(64, 96), (75, 49)])
@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_computes_the_original_features_more_densely(
    networks: dict[tuple[str, int], StagedBackbone], name: str, stride: int, size: tuple[int, int]
) -> None:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        original = networks[name, 32](images)
        dense = networks[name, stride](images)
    for stage in range(5):
        step = networks[name, 32].strides[stage] // networks[name, stride].strides[stage]
        torch.testing.assert_close(dense[stage][..., ::step, ::step], original[stage], rtol=1e-4, atol=1e-4)


@family
def test_without_dilation_only_strides_change(name: str) -> None:
    def convolutions(network: nn.Module) -> list[nn.Conv2d]:
        return [module for module in network.modules() if isinstance(module, nn.Conv2d)]

    plain, original = build(name, output_stride=16, dilated=False), build(name, output_stride=32)
    assert plain.strides[-1] == 16
    changed = 0
    for ours, theirs in zip(convolutions(plain), convolutions(original), strict=True):
        assert (ours.dilation, ours.padding) == (theirs.dilation, theirs.padding)
        changed += ours.stride != theirs.stride
    assert changed == (1 if name == "mobilenet_v2" else 2)  # ResNet's projection of the shortcut has the stride too


def test_plan_of_dilation_rates() -> None:
    assert [(p.stride, p.first_dilation, p.dilation) for p in plan_stages(8, dilated=True)] == [
        (2, 1, 1),
        (2, 1, 1),
        (2, 1, 1),
        (1, 1, 2),
        (1, 2, 4),
    ]
    with pytest.raises(ValueError, match=r"output stride 4 is not one of \(8, 16, 32\)"):
        plan_stages(4, dilated=True)


@family
@pytest.mark.parametrize("stages", [0, 2, 5])
def test_frozen_stages_do_not_learn(name: str, stages: int) -> None:
    network = build(name).train()
    network.freeze(stages)
    features = network(torch.randn(1, 3, 33, 33))
    assert [f.requires_grad for f in features] == [stage >= stages for stage in range(5)]
    if stages < 5:
        features[-1].mean().backward()
    for index, stage in enumerate(network.stages()):
        gradients = [p.grad is not None for module in stage for p in module.parameters()]
        assert gradients
        assert all(learns == (index >= stages) for learns in gradients)
    network.freeze(0)
    assert all(p.requires_grad for p in network.parameters())


@family
def test_every_parameter_belongs_to_one_stage(name: str) -> None:
    network = build(name)
    found = [id(p) for stage in network.stages() for module in stage for p in module.parameters()]
    assert sorted(found) == sorted(id(p) for p in network.parameters())


@family
def test_training_mode_changes_neither_result_nor_statistics(name: str) -> None:
    network = build(name)
    images = torch.randn(2, 3, 33, 33)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        evaluated = network(images)
        trained = network.train()(images)
    for first, second in zip(evaluated, trained, strict=True):
        assert torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@family
def test_a_new_network_keeps_the_scale_of_the_signal(name: str) -> None:
    torch.manual_seed(0)
    network = FAMILIES[name]()
    with torch.inference_mode():
        features = network(torch.randn(1, 3, 64, 64))
    assert all(0.05 < f.std() < 5 for f in features)


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_fixed_norm_is_its_formula(seed: int) -> None:
    torch.manual_seed(seed)
    norm = FixedBatchNorm2d(5)
    randomise(norm)
    x = torch.randn(2, 5, 3, 4)

    def column(values: Tensor | None) -> Tensor:
        assert values is not None
        return values.detach()[:, None, None]

    mean, variance = column(norm.running_mean), column(norm.running_var)
    expected = (x - mean) / (variance + 1e-5).sqrt() * column(norm.weight) + column(norm.bias)
    torch.testing.assert_close(norm.train()(x), expected)


def test_fixed_norm_learns_scale_and_shift() -> None:
    norm = closing_norm(2)
    x = torch.tensor([[1.0, 2.0]])[:, :, None, None]
    assert norm(x).abs().max() == 0
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    torch.testing.assert_close(norm.weight.grad, torch.tensor([1.0, 2.0]) / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(norm.bias.grad, torch.ones(2))
