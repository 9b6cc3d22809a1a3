"""DeepLab v1 against its references (resnet38.md section 10, deeplab.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import DEEPLAB, agrees, as_batch
from weakseg.methods.base import means
from weakseg.methods.deeplab_v1 import DeepLabV1, read_seam_retrain
from weakseg.models.registry import BackboneSettings

Vectors = dict[str, np.ndarray]


def seam_retrain(parity: Any, vectors: Vectors) -> DeepLabV1:
    num_classes = vectors["logits"].shape[1] - 1
    backbone = BackboneSettings(name="resnet38", output_stride=8, weights=None)
    network = DeepLabV1(DeepLabV1.Settings(backbone=backbone), num_classes)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, int(vectors["fill_seed"]), float(vectors["fill_gain"]))
    network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()})
    return network.eval()


def moments(tensor: Tensor) -> list[float]:
    values = tensor.detach().double()
    return [values.mean().item(), values.std(correction=0).item()]


def test_names_groups_and_reading(parity: Any) -> None:
    vectors = parity("resnet38/state_dict")
    settings = DeepLabV1.Settings(backbone=BackboneSettings(name="resnet38", output_stride=8, weights=None))
    rows = zip(vectors["deeplabv1_keys"].tolist(), vectors["deeplabv1_shapes"].tolist(), strict=True)
    shapes = {name: tuple(side for side in shape if side) for name, shape in rows}
    num_classes = shapes["cls_conv.weight"][0] - 1
    with torch.device("meta"):
        network = DeepLabV1(settings, num_classes)
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes
    numbers = {id(p): number for number, group in enumerate(network.param_groups(1.0)) for p in group["params"]}
    parameters = vectors["deeplabv1_params"].tolist()
    found = [numbers.get(id(network.get_parameter(name)), -1) for name in parameters]
    assert found == vectors["deeplabv1_group"].tolist()

    other = parity("deeplab/seam_deeplabv1")
    names = {id(p): name for name, p in network.named_parameters()}
    for number, group in enumerate(network.param_groups(1.0)):
        assert {names[id(p)] for p in group["params"]} == set(other[f"group{number}"].tolist()) - {""}
    assert set(other["head_keys"].tolist()) == {name for name in shapes if not name.startswith("backbone.")}

    reading = read_seam_retrain(network.state_dict())
    assert (reading.settings, reading.num_classes, set(reading.state)) == (settings, num_classes, set(shapes))


@torch.no_grad()
def test_taps_and_logits(parity: Any) -> None:
    vectors = parity("deeplab/seam_deeplabv1")
    network = seam_retrain(parity, vectors)
    images = as_batch(vectors["image"][None])
    for tap, features in zip(["conv4", "conv5", "conv6"], network.backbone(images)[2:], strict=True):
        assert features.shape == tuple(vectors[f"{tap}_shape"])
        agrees([*moments(features), features.min(), features.max()], vectors[f"{tap}_stats"], **DEEPLAB)
    logits = network.logits({"image": images})
    assert logits.shape == tuple(vectors["logits_shape"])
    agrees(logits[:, :, ::3, ::3], vectors["logits"], **DEEPLAB)
    agrees([*moments(logits), logits.min(), logits.max()], vectors["logits_stats"], **DEEPLAB)


def test_training_step_with_batch_statistics(parity: Any) -> None:
    vectors = parity("resnet38/deeplabv1")
    network = seam_retrain(parity, vectors)
    images, labels = as_batch(vectors["images"]), torch.from_numpy(vectors["target"])
    with torch.no_grad():
        logits = network.logits({"image": images[:1]})
    agrees(logits[:, :, ::2, ::2], vectors["logits"], relative=1e-4)
    agrees([*moments(logits), logits.abs().max()], vectors["logits_stats"], relative=1e-4)

    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimiser = torch.optim.SGD(network.param_groups(0.001), momentum=0.9, weight_decay=5e-4)
    assert [group["lr"] for group in optimiser.param_groups] == [0.001, 0.002, 0.01, 0.02]
    # In the reference, scales and shifts have gradients, but nothing uses them.
    network.requires_grad_(True)
    seen: list[Tensor] = []
    network.cls_conv.register_forward_hook(lambda _, __, scores: seen.append(scores))
    batch = {"image": images, "labels": labels}
    (loss,) = means(network.losses(batch), network.counts(batch)).values()
    large = nn.functional.interpolate(seen[0], images.shape[-2:], mode="bilinear", align_corners=True)
    agrees([*moments(large), large.abs().max().item()], vectors["train_logits_stats"], relative=1e-4)
    assert loss.item() == pytest.approx(float(vectors["loss"]), rel=1e-4)
    loss.backward()
    optimiser.step()
    columns = (vectors[f"step_{name}"] for name in ("names", "grad_norm", "delta", "head"))
    for name, norm, (_, delta_norm), head in zip(*columns, strict=True):
        parameter = network.get_parameter(str(name))
        assert parameter.grad is not None
        assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-2), name
        delta = (parameter.detach() - before[str(name)]).double().norm().item()
        assert delta == pytest.approx(delta_norm, rel=5e-2), name
        agrees(parameter.contiguous().flatten()[:4], head, relative=1e-4)
    buffers = dict(network.named_buffers())
    for k, name in enumerate(vectors["buffer_names"].tolist()):
        agrees(buffers[name][:64], vectors[f"buffer_{k}"], relative=1e-4)
    assert len(vectors["step_names"]) == len(before)


@torch.no_grad()
def test_largefov(parity: Any) -> None:
    vectors = parity("deeplab/largefov")
    backbone = BackboneSettings(name="vgg16_largefov", output_stride=8, weights=None)
    settings = DeepLabV1.Settings(backbone=backbone, head="narrow")
    network = DeepLabV1(settings, vectors["logits"].shape[1] - 1).double().eval()
    names = {name: name.removeprefix("backbone.").replace("cls_conv", "fc8") for name in network.state_dict()}
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, int(vectors["fill_seed"]), float(vectors["fill_gain"]))
    network.load_state_dict({name: torch.from_numpy(state[reference]) for name, reference in names.items()})
    agrees(network.scores(as_batch(vectors["image"][None]).double()), vectors["logits"], **DEEPLAB)
