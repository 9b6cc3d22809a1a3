"""VGG-16 against AffinityNet's reference (affinitynet.md sections 2 and 9) and DeepLab v1's (deeplab.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import DEEPLAB, agrees
from weakseg.models.caffe_input import CaffeInput
from weakseg.models.rates import caffe_param_groups
from weakseg.models.vgg import VGG16, VGG16Affinity, VGG16LargeFOV
from weakseg.ops.activation import normalise_image

Vectors = dict[str, np.ndarray]


def filled(parity: Any, network: nn.Module, vectors: Vectors) -> Any:
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, int(vectors["fill_seed"]), float(vectors["fill_gain"]))
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return network.eval()


def divided_input(vectors: Vectors) -> Tensor:
    """Images whose conversion to Caffe's input gives that of the stored image over `input_divisor`."""
    caffe = CaffeInput()
    wanted = caffe(torch.from_numpy(normalise_image(vectors["image"]))[None]) / int(vectors["input_divisor"])
    return ((wanted - caffe.shift) / caffe.scale).flip(1)


def test_caffe_input(parity: Any) -> None:
    vectors = parity("affinitynet/vgg16")
    images = CaffeInput()(torch.from_numpy(normalise_image(vectors["image"]))[None])[0]
    agrees(images[:, ::4, ::4], vectors["x"], relative=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "build"), [("vgg16_cls", VGG16), ("vgg16_aff", VGG16Affinity)])
def test_taps(parity: Any, prefix: str, build: type[VGG16]) -> None:
    vectors = parity("affinitynet/vgg16")
    features = filled(parity, build(), vectors)(divided_input(vectors))
    for tap, feature in zip(["conv4", "conv5", "conv5fc"], features[2:], strict=True):
        agrees(feature[:, ::32], vectors[f"{prefix}_{tap}"], relative=1e-4)
        values = feature.double()
        stats = torch.stack([values.mean(), values.std(correction=0), values.abs().max()])
        agrees(stats, vectors[f"{prefix}_{tap}_stats"], relative=1e-4)


@pytest.mark.parametrize("prefix", ["vgg16_cls", "vgg16_aff"])
def test_what_learns_and_how_fast(parity: Any, prefix: str) -> None:
    vectors = parity("affinitynet/vgg16_state_dict")
    rows = zip(vectors[f"{prefix}_keys"].tolist(), vectors[f"{prefix}_shapes"].tolist(), strict=True)
    shapes = {name: tuple(side for side in shape if side) for name, shape in rows}
    with torch.device("meta"):
        whole = VGG16()
        own = set(whole.state_dict())
        heads = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight") and name not in own}
        for name in heads:
            out_channels, *rest = shapes[f"{name}.weight"]
            layer = nn.Conv2d(rest[0], out_channels, 1, bias=False) if rest else nn.GroupNorm(8, out_channels)
            whole.add_module(name, layer)
    assert {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()} == shapes
    # The reference counts its new group normalisations among the old layers.
    new = [whole.get_submodule(name) for name in heads if not name.startswith("gn")]
    groups = caffe_param_groups(whole, new, lr=0.1)
    numbers = {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}
    parameters = vectors[f"{prefix}_params"].tolist()
    assert [numbers[id(whole.get_parameter(name))] for name in parameters] == vectors[f"{prefix}_group"].tolist()
    whole.freeze(1)
    learning = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    assert [name in learning for name in parameters] == vectors[f"{prefix}_trainable"].tolist()


@torch.no_grad()
def test_largefov(parity: Any) -> None:
    vectors = parity("deeplab/largefov")
    network = filled(parity, VGG16LargeFOV().double(), vectors)
    classifier = nn.Sequential()
    classifier.add_module("fc8", nn.Conv2d(1024, vectors["logits"].shape[1], 1))
    filled(parity, classifier.double(), vectors)
    images = torch.from_numpy(normalise_image(vectors["image"]))[None].double()
    features = network(images)
    pooled = [network.pool(feature) for feature in features[:2]]  # the next stage begins with the pooling
    assert pooled[0].shape == tuple(vectors["pool2_shape"])
    expected = {"pool2": pooled[0], "pool3": pooled[1], "pool4": network.pool4(features[2])}
    expected["pool5"] = network.pool4(features[3])
    expected["pool5a"] = network.pool5a(expected["pool5"])
    expected["fc6"] = network.relu(network.fc6(expected["pool5a"]))
    for name, tensor in expected.items():
        values = tensor.double()
        stats = torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()])
        agrees(stats, vectors[f"{name}_stats"], **DEEPLAB)
    agrees(classifier(features[-1]), vectors["logits"], **DEEPLAB)
