"""Scores of a small copy, enlarged along the edges of the image."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from weakseg.ops import enlarge
from weakseg.ops.enlarge import enlarge_label_map, enlarge_scores, enlarge_to_labels
from weakseg.ops.resize import shrink_image


def disc(side: int) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    return (rows**2 + columns**2 < 0.09).astype(np.uint8)


def pictured(labels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-8, 9, (*labels.shape, 3))
    return (np.array([60, 190])[labels][..., None] + noise).astype(np.uint8)


def test_a_coarse_disc_gets_the_edge_that_the_image_has() -> None:
    truth = disc(400)
    image = pictured(truth)
    small = shrink_image(image, 50)
    soft = F.avg_pool2d(torch.from_numpy(disc(50)).float()[None], 5, 1, 2, count_include_pad=False).numpy()[0]
    scores = np.stack([1 - soft, soft])
    bilinear = F.interpolate(torch.from_numpy(scores)[None], (400, 400), mode="bilinear")[0].numpy().argmax(0)
    found = enlarge_to_labels(scores, small, image)
    assert (found != truth).mean() < 0.5 * (bilinear != truth).mean()


def test_without_any_edge_scores_are_enlarged_bilinearly() -> None:
    image = np.full((90, 120, 3), 100, np.uint8)
    scores = np.random.default_rng(1).random((3, 30, 40), np.float32)
    smooth = enlarge._box(enlarge._box(scores))
    expected = F.interpolate(torch.from_numpy(smooth)[None], (90, 120), mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(enlarge_scores(scores, image[:30, :40], image), expected, atol=1e-5)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(2).integers(0, 256, (75, 50, 3)).astype(np.uint8)
    small, scores = shrink_image(image, 30), np.random.default_rng(3).random((4, 30, 20), np.float32)
    whole = enlarge_scores(scores, small, image)
    assert whole.shape == (4, 75, 50)
    monkeypatch.setattr(enlarge, "VALUES_AT_ONCE", 1200)
    np.testing.assert_array_equal(enlarge_scores(scores, small, image), whole)
    np.testing.assert_array_equal(enlarge_to_labels(scores, small, image), whole.argmax(0))


def test_label_maps_keep_their_values() -> None:
    labels = np.where(disc(40), 7, 255).astype(np.uint8)
    image = pictured(disc(120))
    large = enlarge_label_map(labels, shrink_image(image, 40), image)
    assert set(np.unique(large)) == {7, 255}
    assert (large == np.where(disc(120), 7, 255)).mean() > 0.98
    assert enlarge_label_map(labels, image[:40, :40], image[:40, :40]) is labels


def test_the_memory_does_not_grow_with_the_number_of_classes() -> None:
    image = np.zeros((1200, 1600, 3), np.uint8)
    scores = np.random.default_rng(4).random((60, 30, 40), np.float32)
    tracemalloc.start()
    enlarge_to_labels(scores, shrink_image(image, 40), image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20 < 60 * 1200 * 1600 * 4
