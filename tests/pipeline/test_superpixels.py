"""Superpixels of one image with a network, in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weakseg.models.backbone import Backbone
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.pipeline.superpixels import SuperpixelSettings, dense_features, superpixels


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneSettings(name="small", output_stride=8, weights=None)).eval()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (33, 41), (40, 70)])
@pytest.mark.parametrize("canvas", [1, 50])
@pytest.mark.parametrize("stage", [1, 3, 5])
def test_any_size_works(backbone: Backbone, size: tuple[int, int], canvas: int, stage: int) -> None:
    image = noise(*size)
    before = superpixels(image, None, SuperpixelSettings(k=20, min_size=5))
    settings = SuperpixelSettings(k=20, min_size=5, count=6, canvas=canvas, stage=stage)
    ids = superpixels(image, backbone, settings)
    assert ids.shape == size
    assert np.array_equal(np.unique(ids), np.arange(min(6, before.max() + 1)))
    pairs = np.unique(np.stack([before.ravel(), ids.ravel()]), axis=1)
    assert len(pairs[0]) == before.max() + 1, "each segment is in one superpixel"


@pytest.mark.parametrize(("side", "least", "expected"), [(1, 1, 1), (8, 1, 9), (9, 1, 9), (10, 1, 17), (33, 50, 50)])
def test_corners_of_features_lie_on_corners_of_the_canvas(
    backbone: Backbone, side: int, least: int, expected: int
) -> None:
    found = dense_features(noise(side, side), backbone, SuperpixelSettings(stage=3, canvas=least), "cpu")
    assert found.canvas == (expected, expected)
    assert found.values.shape[1:] == (-(-expected // 8),) * 2


def test_what_looks_alike_is_merged_though_apart(backbone: Backbone) -> None:
    image = np.zeros((48, 96, 3), np.uint8)
    image[:, 24:48], image[:, 72:] = (200, 40, 40), (200, 40, 40)
    assert superpixels(image, None, SuperpixelSettings()).max() + 1 == 4
    ids = superpixels(image, backbone, SuperpixelSettings(count=2, stage=1))
    assert ids[24, 12] == ids[24, 60]
    assert ids[24, 36] == ids[24, 84] != ids[24, 12]
