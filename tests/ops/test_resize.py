from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from weakseg.ops.resize import nearest_indices, resize_labels

SIDES = st.integers(1, 80)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_equals_pillows_nearest(height: int, width: int, new_height: int, new_width: int) -> None:
    labels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize((new_width, new_height), Image.Resampling.NEAREST))
    assert np.array_equal(resize_labels(labels, (new_height, new_width)), expected)


@settings(deadline=None)
@given(SIDES.map(lambda half: 2 * half + 1), SIDES)
def test_odd_sides_follow_the_integer_rule(source: int, target: int) -> None:
    expected = (2 * np.arange(target) + 1) * source // (2 * target)
    assert np.array_equal(nearest_indices(source, target), expected)


def test_ties_of_even_sides_go_where_the_running_sum_goes() -> None:
    assert nearest_indices(448, 57)[28] == 223  # the integer rule gives 224


@settings(deadline=None)
@given(SIDES, SIDES)
def test_mirrored_labels_give_mirrored_results_where_no_centre_is_tied(source: int, target: int) -> None:
    centres = (2 * np.arange(target) + 1) * source
    untied = centres % (2 * target) != 0
    forward = nearest_indices(source, target)
    backward = source - 1 - nearest_indices(source, target)[::-1]
    assert np.array_equal(forward[untied], backward[untied])


def test_tensors_and_batches_and_arrays_agree() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (2, 3, 37, 50), dtype=np.uint8)
    expected = resize_labels(labels, (11, 64))
    assert expected.shape == (2, 3, 11, 64)
    result = resize_labels(torch.from_numpy(labels), (11, 64))
    assert result.dtype == torch.uint8
    assert np.array_equal(result.numpy(), expected)
    assert np.array_equal(expected[1, 2], resize_labels(labels[1, 2], (11, 64)))


def test_the_same_size_changes_nothing() -> None:
    labels = torch.arange(12).reshape(3, 4)
    assert torch.equal(resize_labels(labels, (3, 4)), labels)


def test_cached_indices_cannot_be_changed_by_a_caller() -> None:
    assert not nearest_indices(9, 4).flags.writeable
