"""DeepLab v2 against its reference (deeplab.md section 10)."""

from __future__ import annotations

import numpy as np
import pytest

from weakseg.data.transforms import Crop, crop, longer_side_size, mirror, resize_image, scaled_size
from weakseg.labels import VOID
from weakseg.ops.resize import nearest_indices, resize_labels
from weakseg.ops.schedule import poly_factor

HEAD_FACTORS = [1, 10, 20]


def test_label_resize(parity):
    vectors = parity("deeplab/label_resize")
    checked = 0
    for name, expected in vectors.items():
        kind, *numbers = name.split("_")
        if kind == "rows":
            source, target = map(int, numbers)
            assert np.array_equal(nearest_indices(source, target), expected)
        elif kind.startswith("resized"):
            labels = vectors[f"labels{kind.removeprefix('resized')}"]
            assert np.array_equal(resize_labels(labels, expected.shape[-2:]), expected)
        else:
            continue
        checked += 1
    assert checked == len(vectors) - 4


def test_poly_lr(parity):
    # The vectors `lr_after_last*` are what the reference computes after its last update and never uses.
    vectors = parity("deeplab/poly_lr")
    for k in range(2):
        lr, steps, every, power = vectors[f"args{k}"].tolist()
        used = [lr * poly_factor(i - 1, int(steps), power, int(every)) for i in vectors[f"iteration{k}"].tolist()]
        assert np.abs(np.outer(used, HEAD_FACTORS) - vectors[f"lr_used{k}"]).max() <= 1e-12


@pytest.mark.parametrize("variant", ["nobase", "base"])
@pytest.mark.parametrize("k", range(3))
def test_augment(parity, k, variant):
    vectors = parity("deeplab/augment")
    scale, top, left, flip = vectors[f"drawn_{k}_{variant}"].tolist()
    image, labels = vectors[f"rgb_{k}"], vectors[f"lab_{k}"]
    mean, side = vectors["mean_bgr"].astype(np.float32), int(vectors["crop"])

    size = labels.shape
    if variant == "base":
        size = longer_side_size(size, int(vectors["base_size"]), "deeplab")
    size = scaled_size(size, scale, "deeplab")
    place = Crop(side, int(top), int(left), 0, 0, min(side, size[0]), min(side, size[1]))
    bgr = resize_image(image, size, "deeplab")[..., ::-1].astype(np.float32)
    image_view = (crop(bgr, place, mean) - mean).transpose(2, 0, 1)
    label_view = crop(resize_labels(labels, size), place, VOID)
    if flip < 0.5:
        image_view, label_view = mirror(image_view), mirror(label_view)

    assert np.array_equal(label_view, vectors[f"label_{k}_{variant}"])
    assert np.abs(image_view[:, ::3, ::3] - vectors[f"image_{k}_{variant}"]).max() <= 2e-3
