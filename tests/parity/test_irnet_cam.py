"""IRNet's CAM network against the reference: forward pass, inference over scales, two steps of training, its file."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from weakseg.errors import WeaksegError
from weakseg.methods.cam import CAM, read_irnet_cam
from weakseg.models.norm import fold_norms
from weakseg.models.registry import BackboneSettings
from weakseg.models.weights import read_state
from weakseg.ops.activation import (
    Size,
    Views,
    maps_per_scale,
    multi_scale_maps,
    normalise_image,
    normalise_maps,
    resize_image,
    resize_maps,
)
from weakseg.ops.schedule import poly_factor

CPU = torch.device("cpu")
IRNET = CAM.Settings(
    backbone=BackboneSettings(name="resnet50", output_stride=16, dilated=False, weights=None, frozen_stages=3)
)


def sum_resized(maps: Iterable[Tensor], size: Size) -> Tensor:
    return sum(resize_maps(of_scale, size, size) for of_scale in maps)


def full_size_maps(maps: Iterable[Tensor], size: Size, stride: int = 16) -> Tensor:
    """The sum over scales at the size of the image, as the original writes it beside the small maps: each is resized to
    the next multiples of the network's stride, and the sum is cropped."""
    height, width = size
    padded = -(-height // stride) * stride, -(-width // stride) * stride
    return sum_resized(maps, padded)[..., :height, :width]


def reference_name(name: str) -> str:
    return "resnet50." + name.removeprefix("backbone.") if name.startswith("backbone.") else name


def filled_cam(parity: Any, seed: int) -> CAM:
    network = CAM(IRNET, 20)
    state = {
        name: torch.from_numpy(np.asarray(parity.fill.fill(reference_name(name), tuple(tensor.shape), seed)))
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.eval()


@pytest.fixture(scope="module")
def cam(parity: Any) -> CAM:
    return filled_cam(parity, int(parity("irnet/cam_net")["seed"]))


def pair(image: np.ndarray) -> Tensor:
    batch = torch.from_numpy(normalise_image(image))[None]
    return torch.cat([batch, batch.flip(3)])


@pytest.mark.parametrize("case", [0, 1])
def test_network(parity: Any, cam: CAM, case: int) -> None:
    vectors = parity("irnet/cam_net")
    images = pair(vectors[f"image_{case}"])
    np.testing.assert_allclose(parity.stats(images, 8), vectors[f"input_{case}_stats"], rtol=0, atol=2e-5)
    with torch.inference_mode():
        taps = cam.backbone(images)[1:]  # the reference has stem and layer1 in one stage
        scores = cam.scores(images)
        maps = cam.activation_maps(images)
    np.testing.assert_array_equal([tap.shape for tap in taps], vectors[f"tap_shapes_{case}"])
    for tap, expected in zip(taps, vectors[f"tap_stats_{case}"], strict=True):
        np.testing.assert_allclose(parity.stats(tap, 8), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scores.numpy(), vectors[f"logits_{case}"], rtol=0, atol=2e-5)
    summed = maps[0] + maps[1].flip(2)
    np.testing.assert_allclose(summed.numpy(), vectors[f"cam_{case}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", [0, 1])
def test_scaled_images(parity: Any, case: int) -> None:
    vectors = parity("irnet/cam_infer")
    for index, scale in enumerate(vectors["scales"][1:], start=1):
        scaled = resize_image(vectors[f"image_{case}"], scale)
        # One grey value of one pixel moves the mean by far more than the rounding of float64.
        np.testing.assert_allclose(
            parity.stats(torch.tensor(scaled), 8), vectors[f"scaled_image_{case}_{index}_stats"], rtol=1e-12
        )


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("case", [0, 1])
def test_inference_over_scales(parity: Any, cam: CAM, case: int, folded: bool) -> None:
    vectors = parity("irnet/cam_infer")
    if folded:
        cam = copy.deepcopy(cam)
        fold_norms(cam)
    image, labels = vectors[f"image_{case}"], vectors[f"keys_{case}"] + 1
    views = Views.of([image], vectors["scales"].tolist())
    raw = list(maps_per_scale(cam.activation_maps, views, CPU))
    for index, maps in enumerate(raw):
        np.testing.assert_allclose(maps[0].numpy(), vectors[f"raw_{case}_{index}"], rtol=0, atol=2e-5)
    (summed,) = multi_scale_maps(cam.activation_maps, views, [labels.tolist()], CPU)
    present = normalise_maps(summed.numpy(), labels.tolist(), views.size)
    np.testing.assert_array_equal(present.labels, labels)
    np.testing.assert_allclose(present.maps, vectors[f"cam_{case}"], rtol=0, atol=1e-4)
    high_res = full_size_maps(raw, views.size)[0].numpy()[labels - 1]
    full = normalise_maps(high_res, labels.tolist(), views.size, stride=1)
    np.testing.assert_allclose(full.maps, vectors[f"high_res_{case}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [0, 1])
def test_maps_from_given_network_outputs(parity: Any, case: int) -> None:
    vectors = parity("irnet/cam_infer")
    labels = vectors[f"keys_{case}"] + 1
    raw = [torch.from_numpy(vectors[f"raw_{case}_{index}"][labels - 1])[None] for index in range(4)]
    size = height, width = vectors[f"image_{case}"].shape[:2]
    maps = sum_resized(raw, ((height - 1) // 4 + 1, (width - 1) // 4 + 1))[0].numpy()
    np.testing.assert_allclose(
        normalise_maps(maps, labels.tolist(), size).maps, vectors[f"cam_{case}"], rtol=0, atol=1e-6
    )
    full = normalise_maps(full_size_maps(raw, size)[0].numpy(), labels.tolist(), size, stride=1)
    np.testing.assert_allclose(full.maps, vectors[f"high_res_{case}"], rtol=0, atol=1e-6)


def test_two_training_steps(parity: Any) -> None:
    vectors = parity("irnet/train_cam")
    network = filled_cam(parity, int(vectors["seed"])).train()
    batch = {
        "image": torch.from_numpy(np.stack([normalise_image(image) for image in vectors["images"]])),
        "tags": torch.from_numpy(vectors["labels"]),
    }
    # The reference hands the weight decay to SGD as momentum (irnet.md, Q1).
    groups = network.param_groups(lr=0.1)
    optimiser = torch.optim.SGD(groups, momentum=1e-4, weight_decay=1e-4)
    initial_rates = [group["lr"] for group in optimiser.param_groups]
    state = network.state_dict()
    watched = [next(name for name in state if reference_name(name) == reference) for reference in vectors["watched"]]
    for step in range(2):
        for name, expected in zip(watched, vectors["checksums"][step], strict=True):
            np.testing.assert_allclose(parity.checksum(network.state_dict()[name]), expected, rtol=1e-4, err_msg=name)
        for group, rate in zip(optimiser.param_groups, initial_rates, strict=True):
            group["lr"] = rate * poly_factor(step, steps=2, power=0.9)
        np.testing.assert_allclose([g["lr"] for g in optimiser.param_groups], vectors["lr"][step], rtol=1e-9)
        (loss,) = network.losses(batch).values()
        optimiser.zero_grad()
        loss.backward()
        np.testing.assert_allclose(loss.item(), vectors["loss"][step], rtol=0, atol=1e-5)
        parameters = dict(network.named_parameters())
        for name, expected in zip(watched, vectors["grad_norms"][step], strict=True):
            gradient = parameters[name].grad if name in parameters else None
            norm = np.nan if gradient is None else gradient.norm().item()
            np.testing.assert_allclose(norm, expected, rtol=1e-4, err_msg=name)
        optimiser.step()
        with torch.no_grad():
            (validation,) = network.losses(batch).values()
        np.testing.assert_allclose(validation.item(), vectors["validation_loss"][step], rtol=0, atol=1e-5)
    for name, expected in zip(watched, vectors["checksums"][2], strict=True):
        np.testing.assert_allclose(parity.checksum(network.state_dict()[name]), expected, rtol=1e-4, err_msg=name)


def reference_checkpoint(parity: Any) -> dict[str, Tensor]:
    """A state dict with all names of a real file, aliases sharing their storage."""
    vectors = parity("irnet/checkpoint_keys")
    columns = (vectors[name].tolist() for name in ("cam_keys", "cam_shapes", "cam_alias_of"))
    state: dict[str, Tensor] = {}
    for key, shape, alias in zip(*columns, strict=True):
        dimensions = tuple(int(n) for n in shape.split("x")) if shape else ()
        if alias == key:
            state[key] = torch.from_numpy(np.asarray(parity.fill.fill(key, dimensions, 11)))
        else:
            state[key] = state[alias]
        assert tuple(state[key].shape) == dimensions
    return state


def test_reads_the_original_checkpoint(parity: Any, cam: CAM, tmp_path: Path) -> None:
    torch.save(reference_checkpoint(parity), tmp_path / "res50_cam.pth")
    network = CAM(IRNET, 20)
    reading = read_irnet_cam(read_state(tmp_path / "res50_cam.pth"))
    assert reading.num_classes == 20
    network.load_state_dict(dict(reading.state))
    for name, tensor in cam.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_refuses_a_checkpoint_whose_copies_differ(parity: Any) -> None:
    keys = [key for key in parity("irnet/checkpoint_keys")["cam_keys"].tolist() if "bn1.bias" in key]
    state = {key: torch.zeros(3) for key in keys}
    state["stage3.0.2.bn1.bias"] = torch.ones(3)
    with pytest.raises(WeaksegError, match=r"copies of backbone\.layer3\.2\.bn1\.bias differ"):
        read_irnet_cam(state)


def test_refuses_a_checkpoint_of_something_else() -> None:
    with pytest.raises(WeaksegError, match=r"it has a tensor fc_edge1\.0\.weight"):
        read_irnet_cam({"resnet50.conv1.weight": torch.zeros(1), "fc_edge1.0.weight": torch.zeros(1)})
