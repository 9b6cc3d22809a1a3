"""Background scores of maps that have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import LEAST, alpha_for, threshold_of, with_background, with_own_background


def maps_of(values: np.ndarray) -> ActivationMaps:
    return ActivationMaps(np.array([2], np.int16), values[None].astype(np.float16), values.shape, 1)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.3), (0.5, 0.9), (0.02, 0.1)])
def test_the_background_wins_the_lower_of_two_parts_however_strong_the_maps_are(low: float, high: float) -> None:
    values = np.full((8, 8), low, np.float32)
    values[2:5, 3:7] = high
    scores = with_background(values[None], alpha_for(maps_of(values)))
    np.testing.assert_array_equal(scores.argmax(0) == 1, values == np.float32(high))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_maps_of_one_value_have_an_alpha(value: float) -> None:
    assert alpha_for(maps_of(np.full((4, 5), value, np.float32))) == 1
    assert alpha_for(ActivationMaps(np.zeros(0, np.int16), np.zeros((0, 4, 5), np.float16), (4, 5), 1)) == 1


@given(st.floats(1e-3, 1e3))
def test_a_class_is_as_strong_as_the_background_at_its_threshold(alpha: float) -> None:
    threshold = threshold_of(alpha)
    assert (1 - threshold) ** alpha == pytest.approx(threshold, rel=1e-9)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.7, 3.0])
def test_a_threshold_that_was_chosen_is_that_of_the_background(threshold: float) -> None:
    maps = replace(maps_of(np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)), threshold=threshold)
    assert (with_own_background(maps).maps[0] == np.float32(threshold)).all()
    assert threshold_of(alpha_for(maps)) == pytest.approx(min(max(threshold, LEAST), 1 - LEAST))


def test_more_of_the_power_that_suits_an_image_is_a_weaker_background() -> None:
    values = np.full((8, 8), 0.1, np.float32)
    values[2:5, 3:7] = 0.7
    maps = maps_of(values)
    thresholds = [threshold_of(alpha_for(maps, factor=factor)) for factor in (0.5, 1, 4)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert alpha_for(maps, 3.0, factor=0.5) == 3, "a number is taken as it is"
