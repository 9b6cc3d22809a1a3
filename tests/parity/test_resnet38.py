"""ResNet-38 against its reference (resnet38.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reference import agrees, as_batch
from weakseg.models.rates import caffe_param_groups
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.models.resnet38 import ResNet38
from weakseg.ops.schedule import poly_factor

TAPS = {"conv3": (2, 8), "conv4": (3, 16), "conv5": (4, 32), "conv6": (5, 64)}
"""The stage that gives a tap, and the step between the channels that the vectors hold."""

RESNET38 = BackboneSettings(name="resnet38", output_stride=8, weights=None, frozen_stages=1)
Vectors = dict[str, np.ndarray]


def filled(parity: Any, network: nn.Module, vectors: Vectors) -> nn.Module:
    seed, gain = int(vectors["fill_seed"]), float(vectors["fill_gain"])
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, seed, gain)
    network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    return network.eval()


def reference_shapes(vectors: Vectors, network: str) -> dict[str, tuple[int, ...]]:
    rows = zip(vectors[f"{network}_keys"].tolist(), vectors[f"{network}_shapes"].tolist(), strict=True)
    return {name: tuple(side for side in shape if side) for name, shape in rows}


@pytest.fixture(scope="module")
def backbone(parity: Any) -> ResNet38:
    network = filled(parity, build_backbone(RESNET38), parity("resnet38/backbone"))
    assert isinstance(network, ResNet38)
    return network


@torch.no_grad()
def test_taps(parity: Any, backbone: ResNet38) -> None:
    vectors = parity("resnet38/backbone")
    images = as_batch(vectors["image"])
    assert np.abs(images[0].numpy() - vectors["x"]).max() <= 1e-6
    features, odd_features = backbone(images), backbone(as_batch(vectors["odd_image"]))
    for tap, (stage, step) in TAPS.items():
        feature, odd_feature = features[stage - 1], odd_features[stage - 1]
        assert feature.shape == tuple(vectors[f"{tap}_shape"])
        agrees(feature[:, ::step], vectors[tap], relative=1e-4)
        agrees(parity.stats(feature), vectors[f"{tap}_stats"], relative=1e-4)
        assert odd_feature.shape == tuple(vectors[f"odd_{tap}_shape"])
        agrees(odd_feature[:, :: 4 * step], vectors[f"odd_{tap}"], relative=1e-4)


@torch.no_grad()
def test_every_block(parity: Any, backbone: ResNet38) -> None:
    vectors = parity("resnet38/backbone")
    x = as_batch(vectors["image"])
    columns = (vectors[f"block_{name}"] for name in ("names", "shape", "stats", "head"))
    for name, shape, expected_stats, head in zip(*columns, strict=True):
        x = backbone.get_submodule(str(name))(x)
        assert x.shape == tuple(shape), name
        agrees(parity.stats(x), expected_stats, relative=1e-4)
        largest = expected_stats[2]
        assert np.abs(x.contiguous().flatten()[:16].numpy() - head).max() <= 1e-4 * largest, name


def test_names_of_the_state(parity: Any, backbone: ResNet38) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    assert shapes == reference_shapes(parity("resnet38/state_dict"), "backbone")


@pytest.mark.parametrize("network", ["resnet38_cls", "resnet38_aff", "seam"])
def test_what_learns_and_how_fast(parity: Any, network: str) -> None:
    vectors = parity("resnet38/state_dict")
    shapes = reference_shapes(vectors, network)
    with torch.device("meta"):
        whole = ResNet38()
        heads = [name.removesuffix(".weight") for name in shapes if name not in whole.state_dict()]
        for name in heads:
            out_channels, in_channels, *_ = shapes[f"{name}.weight"]
            whole.add_module(name, nn.Conv2d(in_channels, out_channels, 1, bias=False))
    assert {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()} == shapes
    parameters = vectors[f"{network}_params"].tolist()
    # The reference sorts all parameters into groups and freezes some of them later.
    assert group_numbers(whole, heads, parameters) == vectors[f"{network}_group"].tolist()
    whole.freeze(1)
    learning = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert [name in learning for name in parameters] == vectors[f"{network}_trainable"].tolist()


def group_numbers(network: nn.Module, heads: list[str], parameters: list[str]) -> list[int]:
    """The number of each parameter's group, -1 for those in none."""
    groups = caffe_param_groups(network, [network.get_submodule(name) for name in heads], lr=0.1)
    numbers = {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}
    return [numbers.get(id(network.get_parameter(name)), -1) for name in parameters]


def test_optimiser_and_schedule(parity: Any) -> None:
    vectors = parity("resnet38/optimiser")
    old, new = (nn.Conv2d(1, 1, 1) for _ in range(2))
    network = nn.ModuleList([old, new])
    # Every group has one parameter, of a shape that no layer has.
    parameters = [nn.Parameter(torch.from_numpy(values)) for values in vectors["start"]]
    old.weight, old.bias, new.weight, new.bias = parameters
    base_lr, steps = float(vectors["base_lr"]), int(vectors["max_step"])
    momentum, decay = vectors["momentum"], vectors["weight_decay"]
    optimiser = torch.optim.SGD(
        caffe_param_groups(network, [new], base_lr), momentum=float(momentum[0]), weight_decay=float(decay[0])
    )
    assert [group["momentum"] for group in optimiser.param_groups] == momentum.tolist()
    assert [group["weight_decay"] for group in optimiser.param_groups] == decay.tolist()
    base_rates = [group["lr"] for group in optimiser.param_groups]
    for step, (gradients, values, rates) in enumerate(
        zip(vectors["grads"], vectors["values"], vectors["rates"], strict=True)
    ):
        factor = poly_factor(step, steps, power=0.9)
        for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        np.testing.assert_allclose([group["lr"] for group in optimiser.param_groups], rates, rtol=1e-9)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        assert np.abs(torch.stack(parameters).detach().numpy() - values).max() <= 1e-6
