"""The share of activation that falls on the context of its class, on maps that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from weakseg.errors import WeaksegError
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.context import OnContext, context_scores, on_context

MAPS = ActivationMaps(
    np.array([1, 3, 4], np.int16),
    np.array([[[1, 0.5], [0.25, 0.25]], [[0, 1], [1, 0]], [[1, 1], [1, 1]]], np.float32),
    size=(2, 2),
    stride=1,
)
CONTEXTS = np.array([[3, 1], [1, 2]], np.uint8)


def test_each_map_is_summed_on_the_context_of_its_own_class() -> None:
    assert on_context(MAPS, CONTEXTS) == [OnContext(1, 0.75, 2, 2, 4), OnContext(3, 0, 2, 1, 4)]


def test_maps_are_summed_at_the_size_of_the_image() -> None:
    maps = ActivationMaps(np.array([2], np.int16), np.full((1, 2, 1), 0.5, np.float32), size=(7, 3), stride=4)
    contexts = np.zeros((7, 3), np.uint8)
    contexts[6] = 2
    assert on_context(maps, contexts) == [OnContext(2, 1.5, 10.5, 3, 21)]


def test_a_background_has_no_context() -> None:
    maps = ActivationMaps(np.array([0, 1], np.int16), np.ones((2, 2, 2), np.float32), size=(2, 2), stride=1)
    assert on_context(maps, np.zeros((2, 2), np.uint8)) == []


def test_shares_are_of_the_sums_over_all_images() -> None:
    found = [OnContext(1, 0.75, 2, 2, 4), OnContext(3, 0, 2, 1, 4), OnContext(1, 1, 1, 1, 4)]
    assert context_scores(found, 3) == {
        "share": 0.35,
        "area": 4 / 12,
        "maps": 3,
        "classes": [
            {"share": 1.75 / 3, "area": 3 / 8, "maps": 2},
            {"share": None, "area": None, "maps": 0},
            {"share": 0, "area": 1 / 4, "maps": 1},
        ],
    }


def test_a_map_without_preference_has_the_share_of_the_area() -> None:
    contexts = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
    maps = ActivationMaps(np.array([1, 2], np.int16), np.full((2, 20, 30), 0.25, np.float32), (20, 30), 1)
    scores = context_scores(on_context(maps, contexts), 2)
    assert scores["share"] == pytest.approx(scores["area"])


def test_without_contexts_or_activation_nothing_is_known() -> None:
    nothing = {"share": None, "area": None, "maps": 0}
    assert context_scores([], 2) == {**nothing, "classes": [nothing, nothing]}
    silent = ActivationMaps(np.array([1], np.int16), np.zeros((1, 2, 2), np.float32), size=(2, 2), stride=1)
    assert context_scores(on_context(silent, CONTEXTS), 1)["share"] is None


def test_a_context_mask_of_another_size_is_refused() -> None:
    with pytest.raises(WeaksegError, match="The context mask has 3×2 pixels, the image 2×2"):
        on_context(MAPS, np.zeros((2, 3), np.uint8))
