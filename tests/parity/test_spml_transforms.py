"""SPML's augmentation and optimiser against their reference (spml.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reference import agrees
from weakseg.data.opencv import scale_nearest
from weakseg.data.transforms import (
    Augmentation,
    View,
    crop,
    grey_and_blur,
    longer_side_size,
    resize_image,
    scaled_size,
    top_left_crop,
)
from weakseg.labels import VOID
from weakseg.ops.activation import IMAGENET_MEAN
from weakseg.optimisation import TrainSettings, build_optimiser

Vectors = dict[str, np.ndarray]
STYLE = "opencv_float"


@pytest.mark.cases("spml/transforms", "resize_*_image")
def test_scaling(parity: Any, case: str) -> None:
    vectors = parity("spml/transforms")
    image, labels = vectors["image"], vectors["label"]
    size = scaled_size(image.shape[:2], float(case), STYLE)
    agrees(resize_image(image, size, STYLE) / np.float32(255), vectors[f"resize_{case}_image"], relative=1e-5)
    scaled = np.stack([scale_nearest(labels[..., channel], size) for channel in range(2)], axis=-1)
    np.testing.assert_array_equal(scaled, vectors[f"resize_{case}_label"])


def test_longer_side(parity: Any) -> None:
    vectors = parity("spml/transforms")
    expected = vectors["longside_image"]
    size = longer_side_size(vectors["image"].shape[:2], max(expected.shape), STYLE)
    agrees(resize_image(vectors["image"], size, STYLE) / np.float32(255), expected, relative=1e-5)
    np.testing.assert_array_equal(scale_nearest(vectors["label"][..., 0], size), vectors["longside_label"])


def view_of(vectors: Vectors, case: str, lowest: float, highest: float, size: tuple[int, int]) -> View:
    """The view that the scripted uniform numbers give. The crop is the square that holds the reference's."""
    uniform = vectors[f"{case}_uniform"]
    height, width = vectors["image"].shape[:2]
    scaled = scaled_size((height, width), lowest + uniform[1] * (highest - lowest), STYLE)
    # Offsets are cut off before the last place.
    top, left = (int(u * max(0, side - part)) for u, side, part in zip(uniform[2:4], scaled, size, strict=True))
    side = max(size)
    place = top_left_crop((scaled[0] - top, scaled[1] - left), side)._replace(top=top, left=left)
    mirrored = bool(uniform[0] >= 0.5)
    return View(scaled, place.before_mirroring(scaled[1]) if mirrored else place, mirrored)


@pytest.mark.parametrize(("kind", "lowest", "highest"), [("tag", 0.5, 1.5), ("classifier", 0.5, 2.0)])
def test_whole_augmentation(parity: Any, kind: str, lowest: float, highest: float) -> None:
    vectors = parity("spml/transforms")
    for case in [name.removesuffix("_uniform") for name in vectors if name.startswith(kind) and "uniform" in name]:
        height, width = vectors[f"{case}_semantic"].shape
        view = view_of(vectors, case, lowest, highest, (height, width))
        augmentation = Augmentation(style=STYLE, crop=max(height, width))

        def cut(array: np.ndarray, view: View = view, size: tuple[int, int] = (height, width)) -> np.ndarray:
            return array[..., : size[0], : size[1]]

        image = augmentation.image(vectors["image"], view)
        if kind == "classifier":
            grey, blur, *sigma = vectors[f"{case}_uniform"][4:]
            image = grey_and_blur(cut(image), grey=grey < 0.3, sigma=0.1 + sigma[0] * 4.9 if blur < 0.5 else None)
            agrees(image, vectors[f"{case}_image"], relative=1e-5)
        else:
            agrees(cut(image), vectors[f"{case}_image"], relative=1e-5)
        for channel, name in enumerate(("semantic", "instance")):
            if f"{case}_{name}" in vectors:
                labels = augmentation.labels(vectors["label"][..., channel], view)
                np.testing.assert_array_equal(cut(labels), vectors[f"{case}_{name}"])


def test_padding(parity: Any) -> None:
    vectors = parity("spml/transforms")
    expected, labels = vectors["pad_label"], vectors["label"]
    side = max(expected.shape[:2])
    padded = crop(labels, top_left_crop(labels.shape[:2], side), VOID)
    np.testing.assert_array_equal(padded[: expected.shape[0], : expected.shape[1]], expected)
    image = np.zeros((side, side, 3), np.float32)
    image[...] = IMAGENET_MEAN
    image[: labels.shape[0], : labels.shape[1]] = vectors["image"] / np.float32(255)
    agrees(image[: expected.shape[0], : expected.shape[1]], vectors["pad_image"], relative=1e-5)


# Optimiser ------------------------------------------------------------------------------------------------------------


def test_learning_rate(parity: Any) -> None:
    vectors = parity("spml/optim")
    length = 30000
    common: dict[str, Any] = {"steps": length, "optimiser": "caffe_sgd", "lr": 3e-3}
    cases = {
        "poly": TrainSettings(warmup_steps=100, **common),
        "poly_nowarm": TrainSettings(**common),
        "step": TrainSettings(schedule="step", drops=(100 / length, 20000 / length), warmup_steps=10, **common),
    }
    for name, settings in cases.items():
        rates = [settings.lr * settings.rate_factor(int(step), length, 1) for step in vectors["iterations"]]
        np.testing.assert_allclose(rates, vectors[name], rtol=1e-6)


def test_updates(parity: Any) -> None:
    vectors = parity("spml/optim")
    weights = [torch.nn.Parameter(torch.from_numpy(row.copy())) for row in vectors["param0"]]
    settings = TrainSettings(steps=4, optimiser="caffe_sgd", lr=1.0, momentum=0.9)
    kinds = zip(weights, (1, 2, 10, 20), (5e-4, 0, 5e-4, 0), strict=True)
    groups = [{"params": [w], "lr": factor, "weight_decay": decay} for w, factor, decay in kinds]
    optimiser = build_optimiser(settings, groups)
    factors = [group["lr"] for group in optimiser.param_groups]
    for rate, gradients, expected in zip(vectors["lrs"], vectors["grads"], vectors["params_after"], strict=True):
        for group, factor, weight, gradient in zip(optimiser.param_groups, factors, weights, gradients, strict=True):
            group["lr"] = factor * float(rate)
            weight.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
        agrees(torch.stack(weights).detach().numpy(), expected, relative=1e-6)
