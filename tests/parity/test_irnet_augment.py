"""IRNet's augmentation against its reference (irnet.md sections 4 and 10)."""

from __future__ import annotations

import numpy as np
import pytest

from weakseg.data.transforms import (
    Crop,
    crop,
    longer_side_size,
    normalised_crop,
    resize_image,
    scaled_size,
    top_left_crop,
)
from weakseg.labels import VOID
from weakseg.ops.resize import resize_labels


@pytest.fixture(scope="module")
def vectors(parity):
    return parity("irnet/augment")


def test_normalised(vectors):
    image, side = vectors["image"], max(vectors["image"].shape)
    cut = normalised_crop(image, top_left_crop(image.shape[:2], side))
    assert np.abs(cut[:, : image.shape[0], : image.shape[1]] - vectors["normalised"]).max() <= 1e-6


def test_scaled_image_and_label(vectors):
    image, label = vectors["image"], vectors["label"]
    for k, scale in enumerate(vectors["scales"]):
        size = scaled_size(label.shape, float(scale))
        assert np.array_equal(resize_image(image, size), vectors[f"image_scaled_{k}"])
        assert np.array_equal(resize_labels(label, size), vectors[f"label_scaled_{k}"])


def test_resize_long(vectors):
    size = longer_side_size(vectors["label"].shape, int(vectors["resize_long_target"][0]))
    assert np.array_equal(resize_image(vectors["image"], size), vectors["resize_long"])


def test_crops(vectors):
    for k, (side, box) in enumerate(zip(vectors["crop_sizes"].tolist(), vectors["crop_boxes"].tolist(), strict=True)):
        crop_y0, crop_y1, crop_x0, crop_x1, y0, y1, x0, x1 = box
        assert (crop_y1 - crop_y0, crop_x1 - crop_x0) == (y1 - y0, x1 - x0)
        place = Crop(side, y0, x0, crop_y0, crop_x0, y1 - y0, x1 - x0)
        assert np.array_equal(crop(vectors["image"], place, 0), vectors[f"crop_{k}"])
        assert np.array_equal(crop(vectors["label"], place, VOID), vectors[f"label_crop_{k}"])


def test_top_left_crop(vectors):
    place = top_left_crop(vectors["label"].shape, vectors["top_left_crop"].shape[0])
    assert np.array_equal(crop(vectors["image"], place, 0), vectors["top_left_crop"])


def test_label_reduced_to_a_quarter(vectors):
    expected = vectors["label_quarter"]
    quarter = resize_labels(vectors["label_64"], expected.shape)
    assert np.array_equal(quarter, expected)
    assert np.array_equal(quarter, vectors["label_64"][2::4, 2::4])
