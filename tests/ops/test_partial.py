"""The rules that make partial label maps, against pixel-by-pixel readings of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.labels import UNLABELLED, Box
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.partial import activation_in_box, box_labels, most_precise, smallest_box, tag_labels

SIZE = (7, 9)


def some_maps(seed: int, labels: tuple[int, ...] = (1, 3, 4)) -> ActivationMaps:
    """Maps of few values, so that scores are often equal or constant."""
    values = np.random.default_rng(seed).integers(0, 5, (len(labels), *SIZE)) / np.float32(4)
    return ActivationMaps(np.array(labels, np.int16), values.astype(np.float32), SIZE, stride=1)


def slow_tags(maps: ActivationMaps, tags: set[int], alpha: float, threshold: float) -> npt.NDArray[np.uint8]:
    result = np.zeros(SIZE, np.uint8)
    for y, x in np.ndindex(SIZE):
        scores = {int(k): float(m[y, x]) for k, m in zip(maps.labels, maps.maps, strict=True) if int(k) in tags}
        scores[0] = (1 - max(scores.values(), default=0)) ** alpha
        best = min(scores, key=lambda label: (-scores[label], label))
        result[y, x] = best if scores[best] >= threshold else UNLABELLED
    return result


@given(st.integers(0, 999), st.sets(st.sampled_from([1, 3, 4])), st.sampled_from([1.0, 6.0]))
def test_tags_by_pixel(seed: int, tags: set[int], alpha: float) -> None:
    maps = some_maps(seed)
    assert np.array_equal(tag_labels(maps, tags, alpha, 0.26), slow_tags(maps, tags, alpha, 0.26))


def test_without_a_tag_all_is_background_and_a_background_map_is_left_out() -> None:
    maps = some_maps(0, (0, 1))
    assert not tag_labels(maps, ()).any()
    assert np.array_equal(
        tag_labels(maps, {1}), tag_labels(ActivationMaps(maps.labels[1:], maps.maps[1:], SIZE, 1), {1})
    )


def slow_boxes(boxes: list[Box], maps: ActivationMaps | None, threshold: float) -> npt.NDArray[np.uint8]:
    result = np.zeros(SIZE, np.uint8)
    for y, x in np.ndindex(SIZE):
        scores: dict[int, float] = {}
        for box in boxes:
            if box.x0 <= x < box.x1 and box.y0 <= y < box.y1:
                if maps is None:
                    score = 1 / ((box.x1 - box.x0) * (box.y1 - box.y0))
                else:
                    inside = maps.maps[list(maps.labels).index(box.label), box.y0 : box.y1, box.x0 : box.x1]
                    span = inside.max() - inside.min()
                    score = (inside[y - box.y0, x - box.x0] - inside.min()) / span if span > 0 else 1.0
                scores[box.label] = max(score, scores.get(box.label, 0))
        if scores:
            best = max(scores.values())
            winners = [label for label, score in scores.items() if score == best]
            result[y, x] = winners[0] if len(winners) == 1 and best >= threshold else UNLABELLED
    return result


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x0, x1 = sorted(draw(st.sets(st.integers(0, SIZE[1]), min_size=2, max_size=2)))
    y0, y1 = sorted(draw(st.sets(st.integers(0, SIZE[0]), min_size=2, max_size=2)))
    return Box(draw(st.sampled_from([1, 3, 4])), x0, y0, x1, y1)


@given(st.integers(0, 999), st.lists(boxes(), max_size=4))
def test_boxes_by_pixel(seed: int, some: list[Box]) -> None:
    maps = some_maps(seed)
    for order in (some, some[::-1]):
        assert np.array_equal(box_labels(order, SIZE, activation_in_box(maps), 0.5), slow_boxes(some, maps, 0.5))
        assert np.array_equal(box_labels(order, SIZE, smallest_box, 0), slow_boxes(some, None, 0))


def test_a_constant_map_fills_its_box() -> None:
    maps = ActivationMaps(np.array([2], np.int16), np.full((1, *SIZE), 0.3, np.float32), SIZE, 1)
    labels = box_labels([Box(2, 1, 2, 5, 6)], SIZE, activation_in_box(maps), 0.5)
    expected = np.zeros(SIZE, np.uint8)
    expected[2:6, 1:5] = 2
    assert np.array_equal(labels, expected)


def test_the_first_layer_that_knows_a_pixel_labels_it() -> None:
    first, second = (np.array([row], np.uint8) for row in ([1, UNLABELLED, UNLABELLED], [2, 0, UNLABELLED]))
    assert most_precise([first, second], (1, 3)).tolist() == [[1, 0, UNLABELLED]]
    assert (most_precise([], SIZE) == UNLABELLED).all()


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_labels_are_of_eight_bits(threshold: float) -> None:
    assert tag_labels(some_maps(1), {1, 3}, 6, threshold).dtype == np.uint8
    assert box_labels([Box(3, 0, 0, 2, 2)], SIZE, activation_in_box(some_maps(1)), threshold).dtype == np.uint8
