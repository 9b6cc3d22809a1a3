"""Augmentation of AffinityNet, SEAM and SEAM's segmenter against their references (resnet38.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from draws import Draws
from views import augmented
from weakseg.data.opencv import scale_cubic, scale_nearest, shift_hsv
from weakseg.data.transforms import (
    Augmentation,
    Crop,
    crop,
    longer_side_size,
    normalised_crop,
    random_crop,
    resize_image,
    scaled_size,
)
from weakseg.labels import VOID
from weakseg.models.caffe_input import CaffeInput
from weakseg.ops.activation import normalise_image
from weakseg.ops.activation import resize_image as resize_by_factor

Vectors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def vectors(parity: Any) -> Vectors:
    return dict(parity("resnet38/transforms"))


@pytest.fixture(scope="module")
def retrain(parity: Any) -> Vectors:
    return dict(parity("resnet38/retrain_transforms"))


def test_normalised(vectors: Vectors) -> None:
    normalised = normalise_image(vectors["image"]).transpose(1, 2, 0)
    assert np.abs(normalised - vectors["normalised"]).max() <= 1e-6


def test_normalised_for_vgg16(vectors: Vectors) -> None:
    images = torch.from_numpy(normalise_image(vectors["image"]))[None]
    found = CaffeInput()(images)[0].permute(1, 2, 0).numpy()
    expected = vectors["normalised_vgg"]
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_longer_side(vectors: Vectors) -> None:
    rows = zip(*(vectors[f"long_{name}"].tolist() for name in ("size_in", "target", "size_out")), strict=True)
    for (width, height), target, (expected_width, expected_height) in rows:
        assert longer_side_size((height, width), target) == (expected_height, expected_width)
    size = longer_side_size(vectors["image"].shape[:2], int(vectors["long_image_target"]))
    assert np.abs(resize_image(vectors["image"], size).astype(int) - vectors["long_image"]).max() <= 1


def test_scaled_for_inference(vectors: Vectors) -> None:
    rows = zip(*(vectors[name].tolist() for name in ("side_in", "scale", "side_out")), strict=True)
    assert all(scaled_size((side, side), scale)[0] == expected for side, scale, expected in rows)
    half = resize_by_factor(vectors["image"], 0.5)
    assert np.abs(half.astype(int) - vectors["half_image"]).max() <= 1


@pytest.mark.cases("resnet38/transforms", "crop_*_size")
def test_crops(vectors: Vectors, case: str) -> None:
    image, draws = vectors["image"], Draws(vectors[f"crop_{case}_draws"].tolist())
    place = random_crop(image.shape[:2], int(vectors[f"crop_{case}_size"]), "pillow", draws)  # type: ignore[arg-type]
    assert draws.bounds == vectors[f"crop_{case}_bounds"].tolist()
    view = normalised_crop(image, place).transpose(1, 2, 0)
    assert np.abs(view - vectors[f"crop_{case}"]).max() <= 1e-6


@pytest.mark.cases("resnet38/transforms", "centre_*")
def test_centre_crops(vectors: Vectors, case: str) -> None:
    """Their validation's crop: the space beside it is halved, half to even (section 6)."""
    image, expected = vectors["image"], vectors[f"centre_{case}"]
    size = len(expected)
    space = [side - size for side in image.shape[:2]]
    in_image = (round(max(more, 0) / 2) for more in space)
    in_crop = (round(max(-more, 0) / 2) for more in space)
    length = (min(side, size) for side in image.shape[:2])
    view = normalised_crop(image, Crop(size, *in_image, *in_crop, *length)).transpose(1, 2, 0)
    assert np.abs(view - expected).max() <= 1e-6


def test_the_image_of_the_crf_is_theirs_before_it_was_truncated(retrain: Vectors) -> None:
    """They normalise, take it back and truncate; here the dense CRF sees the image itself."""
    darker = retrain["image"].transpose(2, 0, 1).astype(int) - retrain["denormalised"]
    assert set(np.unique(darker)) <= {0, 1}


def test_hsv_shift(retrain: Vectors) -> None:
    shifted = shift_hsv(retrain["image"], *retrain["hsv_draws"].tolist())
    assert np.abs(shifted.astype(int) - retrain["hsv"]).max() <= 1


def test_scaled_like_opencv(retrain: Vectors) -> None:
    image, labels = retrain["image"], retrain["seg"]
    low, high = 0.5, 1.5
    factor = low + float(retrain["scale_draw"]) * (high - low)
    size = scaled_size(labels.shape, factor, "opencv_cubic")
    assert size == retrain["scaled_seg"].shape
    assert np.abs(scale_cubic(image, size, factor).astype(int) - retrain["scaled_image"]).max() <= 1
    np.testing.assert_array_equal(scale_nearest(labels, size, factor), retrain["scaled_seg"])


def test_retrain_crop(retrain: Vectors) -> None:
    side = len(retrain["crop_seg"])
    place = random_crop(retrain["seg"].shape, side, "opencv_cubic", Draws(retrain["crop_draws"].tolist()))  # type: ignore[arg-type]
    view = normalised_crop(retrain["image"], place).transpose(1, 2, 0)
    assert np.abs(view - retrain["crop_image"]).max() <= 1e-6
    np.testing.assert_array_equal(crop(retrain["seg"], place, VOID), retrain["crop_seg"])


def test_the_whole_view_is_made_in_the_paper_s_order(retrain: Vectors) -> None:
    image, labels = retrain["image"], retrain["seg"]
    augmentation = Augmentation(style="opencv_cubic", scale_range=(0.5, 1.5), crop=24, colour="hsv_shift")
    rng = np.random.default_rng(4)
    view = augmentation.draw(labels.shape, rng)
    assert view.recolour is not None
    coloured = scale_cubic(view.recolour(image), view.size, view.factor)
    expected = normalised_crop(coloured, view.place)
    expected_labels = crop(scale_nearest(labels, view.size, view.factor), view.place, VOID)
    if view.mirrored:
        expected, expected_labels = expected[..., ::-1], expected_labels[..., ::-1]
    found, found_labels = augmented(augmentation, image, labels, np.random.default_rng(4))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_labels, expected_labels)
