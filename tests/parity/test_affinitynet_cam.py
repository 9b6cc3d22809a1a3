"""AffinityNet's classifier against its reference (resnet38.md and affinitynet.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reference import agrees, as_batch
from weakseg.methods.affinitynet import AffinityNet
from weakseg.methods.cam import CAM
from weakseg.models.caffe_input import CaffeInput
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import (
    Views,
    maps_per_scale,
    multi_scale_maps,
    normalise_maps,
    resize_maps,
)
from weakseg.ops.background import against_background

Vectors = dict[str, np.ndarray]


def classifier(parity: Any, vectors: Vectors, backbone: str, num_classes: int, **settings: Any) -> CAM:
    network = CAM(
        CAM.Settings(
            backbone=BackboneSettings(name=backbone, output_stride=8, weights=None, frozen_stages=1),
            form="affinitynet",
            **settings,
        ),
        num_classes,
    )
    shapes = {reference_name(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, int(vectors["fill_seed"]), float(vectors["fill_gain"]))
    network.load_state_dict(
        {name: torch.from_numpy(np.asarray(state[reference_name(name)])) for name in network.state_dict()}
    )
    return network.eval()


def reference_name(name: str) -> str:
    return name.removeprefix("backbone.").replace("classifier", "fc8")


def test_resnet38(parity: Any) -> None:
    vectors = parity("resnet38/classifier")
    network = classifier(parity, vectors, "resnet38", vectors["logits"].shape[1])
    images, tags = as_batch(vectors["images"]), torch.from_numpy(vectors["label"])
    with torch.no_grad():
        agrees(network.scores({"image": images}), vectors["logits"], relative=1e-4)
        agrees(network.activation_maps({"image": images}), vectors["cam"], relative=1e-4)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    agrees(network.scores({"image": images}), vectors["train_logits"], relative=1e-4)
    before = {reference_name(name): p.detach().clone() for name, p in network.named_parameters()}
    optimiser = torch.optim.SGD(network.param_groups(0.1), momentum=5e-4, weight_decay=5e-4)
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, 0.2, 1, 2]
    (loss,) = network.losses({"image": images, "tags": tags}).values()
    assert loss.item() == pytest.approx(float(vectors["loss"]), rel=1e-4)
    loss.backward()
    optimiser.step()
    after = {reference_name(name): p for name, p in network.named_parameters() if p.grad is not None}
    assert set(after) == set(vectors["step_names"].tolist())
    columns = (vectors[f"step_{name}"] for name in ("names", "grad_norm", "delta", "head"))
    for name, norm, (delta_sum, delta_norm), head in zip(*columns, strict=True):
        parameter = after[str(name)]
        delta = (parameter.detach() - before[str(name)]).double()
        assert parameter.grad is not None
        assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-4)
        assert delta.sum().item() == pytest.approx(delta_sum, abs=1e-3)
        assert delta.norm().item() == pytest.approx(delta_norm, rel=1e-4)
        agrees(parameter.contiguous().flatten()[:4], head, relative=1e-4)


@torch.no_grad()
def test_vgg16(parity: Any) -> None:
    vectors = parity("affinitynet/vgg16")
    network = classifier(parity, vectors, "vgg16", vectors["logits"].shape[1], map_power=0.5)
    caffe = CaffeInput()
    wanted = caffe(as_batch(vectors["image"][None])) / int(vectors["input_divisor"])
    images = ((wanted - caffe.shift) / caffe.scale).flip(1)
    agrees(network.scores({"image": images}), vectors["logits"], relative=1e-4)
    agrees(network.activation_maps({"image": images}), vectors["cam"], relative=1e-3)


@pytest.mark.parametrize(("backbone", "power"), [("resnet38", 1.0), ("vgg16", 0.5)])
def test_maps_over_scales_and_their_crfs(parity: Any, backbone: str, power: float) -> None:
    """AffinityNet's first release (affinitynet.md section 6): maps at the size of the image, their labels at a
    background of 0.2, and the two dense CRFs that the affinities are learned from."""
    vectors = parity("affinitynet/infer_cls")
    settings = {"fill_seed": vectors["fill_seed"], "fill_gain": vectors[f"fill_gain_{backbone}"]}
    network = classifier(parity, settings, backbone, len(vectors["label"]), map_power=power)
    image, present = vectors["image"], np.flatnonzero(vectors["label"]) + 1
    shapes = vectors[f"{backbone}_scale_shapes"]

    scales, labels = (1.0, 0.5, 1.5, 2.0), [label - 1 for label in present]
    scaled = Views.of([image], scales)
    per_scale = list(maps_per_scale(network.activation_maps, scaled, "cpu"))
    views = vectors[f"{backbone}_views"]
    assert len(shapes) == len(views) == 2 * len(scales)
    for maps, view, mirrored in zip(per_scale, views[::2], views[1::2], strict=True):
        large = resize_maps(maps, image.shape[:2], image.shape[:2])[0, labels, ::2, ::2]
        agrees(large, view + mirrored, relative=2e-2)

    (maps,) = multi_scale_maps(network.activation_maps, scaled, [present.tolist()], "cpu", stride=1)
    kept = normalise_maps(maps.numpy(), present.tolist(), scaled.size, stride=1)
    assert vectors[f"{backbone}_cam_keys"].tolist() == labels
    assert np.abs(kept.maps - vectors[f"{backbone}_cam"]).max() <= 1e-3
    predicted = np.array([0, *present])[against_background(kept.maps, 0.2).argmax(0)]
    assert (predicted != vectors[f"{backbone}_prediction"]).mean() <= 0.005

    evidence = AffinityNet.evidence(AffinityNet.Settings(low_alpha=4, high_alpha=32), image, kept)
    for ours, theirs in (("low", "la"), ("high", "ha")):
        assert vectors[f"{backbone}_{theirs}_keys"].tolist() == [0, *present]
        expected = vectors[f"{backbone}_{theirs}"]
        assert (evidence[ours].argmax(0) != expected.argmax(0)).mean() <= 0.01
