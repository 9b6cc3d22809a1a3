"""IRNet's CAM network against the reference: forward pass, inference over scales, two steps of training, its file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import as_batch
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

Vectors = dict[str, np.ndarray]
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


def filled_cam(parity: Any, seed: int, num_classes: int) -> CAM:
    network = CAM(IRNET, num_classes)
    state = {
        name: torch.from_numpy(np.asarray(parity.fill.fill(reference_name(name), tuple(tensor.shape), seed)))
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.eval()


@pytest.fixture(scope="module")
def cam(parity: Any) -> Callable[[Vectors, int], CAM]:
    """`cam(vectors, num_classes)` is the network of some vectors, which takes a second to make."""
    filled = lru_cache(1)(partial(filled_cam, parity))
    return lambda vectors, num_classes: filled(int(vectors["seed"]), num_classes)


def pair(image: np.ndarray) -> Tensor:
    batch = torch.from_numpy(normalise_image(image))[None]
    return torch.cat([batch, batch.flip(3)])


@pytest.mark.cases("irnet/cam_net", "image_*")
def test_network(parity: Any, cam: Callable[[Vectors, int], CAM], case: str) -> None:
    vectors = parity("irnet/cam_net")
    network = cam(vectors, vectors[f"logits_{case}"].shape[1])
    images = pair(vectors[f"image_{case}"])
    np.testing.assert_allclose(parity.stats(images, 8), vectors[f"input_{case}_stats"], rtol=0, atol=2e-5)
    with torch.inference_mode():
        taps = network.backbone(images)[1:]  # the reference has stem and layer1 in one stage
        scores = network.scores({"image": images})
        maps = network.activation_maps({"image": images})
    np.testing.assert_array_equal([tap.shape for tap in taps], vectors[f"tap_shapes_{case}"])
    for tap, expected in zip(taps, vectors[f"tap_stats_{case}"], strict=True):
        np.testing.assert_allclose(parity.stats(tap, 8), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scores.numpy(), vectors[f"logits_{case}"], rtol=0, atol=2e-5)
    summed = maps[0] + maps[1].flip(2)
    np.testing.assert_allclose(summed.numpy(), vectors[f"cam_{case}"], rtol=0, atol=2e-5)


@pytest.mark.cases("irnet/cam_infer", "image_*")
def test_scaled_images(parity: Any, case: str) -> None:
    vectors = parity("irnet/cam_infer")
    for index, scale in enumerate(vectors["scales"]):
        if scale == 1:
            continue
        scaled = resize_image(vectors[f"image_{case}"], scale)
        # One grey value of one pixel moves the mean by far more than the rounding of float64.
        np.testing.assert_allclose(
            parity.stats(torch.tensor(scaled), 8), vectors[f"scaled_image_{case}_{index}_stats"], rtol=1e-12
        )


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.cases("irnet/cam_infer", "image_*")
def test_inference_over_scales(parity: Any, cam: Callable[[Vectors, int], CAM], case: str, folded: bool) -> None:
    vectors = parity("irnet/cam_infer")
    network = cam(vectors, len(vectors[f"label_{case}"]))
    if folded:
        network = copy.deepcopy(network)
        fold_norms(network)
    image, labels = vectors[f"image_{case}"], vectors[f"keys_{case}"] + 1
    views = Views.of([image], vectors["scales"].tolist())
    raw = list(maps_per_scale(network.activation_maps, views, CPU))
    for index, maps in enumerate(raw):
        np.testing.assert_allclose(maps[0].numpy(), vectors[f"raw_{case}_{index}"], rtol=0, atol=2e-5)
    (summed,) = multi_scale_maps(network.activation_maps, views, [labels.tolist()], CPU)
    present = normalise_maps(summed.numpy(), labels.tolist(), views.size)
    np.testing.assert_array_equal(present.labels, labels)
    np.testing.assert_allclose(present.maps, vectors[f"cam_{case}"], rtol=0, atol=1e-4)
    high_res = full_size_maps(raw, views.size)[0].numpy()[labels - 1]
    full = normalise_maps(high_res, labels.tolist(), views.size, stride=1)
    np.testing.assert_allclose(full.maps, vectors[f"high_res_{case}"], rtol=0, atol=1e-4)


@pytest.mark.cases("irnet/cam_infer", "image_*")
def test_maps_from_given_network_outputs(parity: Any, case: str) -> None:
    vectors = parity("irnet/cam_infer")
    labels = vectors[f"keys_{case}"] + 1
    scales = range(len(vectors["scales"]))
    raw = [torch.from_numpy(vectors[f"raw_{case}_{index}"][labels - 1])[None] for index in scales]
    size = height, width = vectors[f"image_{case}"].shape[:2]
    maps = sum_resized(raw, ((height - 1) // 4 + 1, (width - 1) // 4 + 1))[0].numpy()
    np.testing.assert_allclose(
        normalise_maps(maps, labels.tolist(), size).maps, vectors[f"cam_{case}"], rtol=0, atol=1e-6
    )
    full = normalise_maps(full_size_maps(raw, size)[0].numpy(), labels.tolist(), size, stride=1)
    np.testing.assert_allclose(full.maps, vectors[f"high_res_{case}"], rtol=0, atol=1e-6)


def test_training_steps(parity: Any) -> None:
    vectors = parity("irnet/train_cam")
    network = filled_cam(parity, int(vectors["seed"]), vectors["labels"].shape[1]).train()
    batch = {
        "image": as_batch(vectors["images"]),
        "tags": torch.from_numpy(vectors["labels"]),
    }
    # The reference hands the weight decay to SGD as momentum (irnet.md, Q1).
    momentum, weight_decay, dampening, nesterov = vectors["optimiser"][0].tolist()
    assert (dampening, nesterov) == (0, 0)
    groups, steps = network.param_groups(lr=float(vectors["lr"][0, 0])), len(vectors["loss"])
    optimiser = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    initial_rates = [group["lr"] for group in optimiser.param_groups]
    state = network.state_dict()
    watched = [next(name for name in state if reference_name(name) == reference) for reference in vectors["watched"]]
    for step in range(steps):
        for name, expected in zip(watched, vectors["checksums"][step], strict=True):
            np.testing.assert_allclose(parity.checksum(network.state_dict()[name]), expected, rtol=1e-4, err_msg=name)
        for group, rate in zip(optimiser.param_groups, initial_rates, strict=True):
            group["lr"] = rate * poly_factor(step, steps, power=0.9)
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
    for name, expected in zip(watched, vectors["checksums"][steps], strict=True):
        np.testing.assert_allclose(parity.checksum(network.state_dict()[name]), expected, rtol=1e-4, err_msg=name)


def reference_checkpoint(parity: Any, seed: int) -> dict[str, Tensor]:
    """A state dict with all names of a real file, aliases sharing their storage."""
    vectors = parity("irnet/checkpoint_keys")
    columns = (vectors[name].tolist() for name in ("cam_keys", "cam_shapes", "cam_alias_of"))
    state: dict[str, Tensor] = {}
    for key, shape, alias in zip(*columns, strict=True):
        dimensions = tuple(int(n) for n in shape.split("x")) if shape else ()
        if alias == key:
            state[key] = torch.from_numpy(np.asarray(parity.fill.fill(key, dimensions, seed)))
        else:
            state[key] = state[alias]
        assert tuple(state[key].shape) == dimensions
    return state


def test_reads_the_original_checkpoint(parity: Any, cam: Callable[[Vectors, int], CAM], tmp_path: Path) -> None:
    vectors = parity("irnet/cam_net")
    checkpoint = reference_checkpoint(parity, int(vectors["seed"]))
    torch.save(checkpoint, tmp_path / "res50_cam.pth")
    num_classes = len(checkpoint["classifier.weight"])
    network = CAM(IRNET, num_classes)
    reading = read_irnet_cam(read_state(tmp_path / "res50_cam.pth"))
    assert reading.num_classes == num_classes
    network.load_state_dict(dict(reading.state))
    for name, tensor in cam(vectors, num_classes).state_dict().items():
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
