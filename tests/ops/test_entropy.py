"""The threshold of the largest entropy: the definition, by trying all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.ops.entropy import entropy_threshold
from weakseg.ops.otsu import histogram, otsu

BINS = 16


def entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


@given(counts=st.lists(st.integers(0, 50), min_size=BINS, max_size=BINS).filter(any))
def test_no_threshold_leaves_more_entropy(counts: list[int]) -> None:
    values = np.array(counts)
    sums = {
        k: entropy(values[:k]) + entropy(values[k:]) for k in range(1, BINS) if values[:k].any() and values[k:].any()
    }
    threshold = entropy_threshold(values)
    if not sums:
        assert threshold is None
        return
    assert threshold is not None
    equal = [k / BINS for k, value in sums.items() if value > max(sums.values()) - 1e-9]
    assert equal[0] <= threshold <= equal[-1]
    assert threshold == pytest.approx((equal[0] + equal[-1]) / 2)


def test_two_values_are_divided_in_the_middle() -> None:
    assert entropy_threshold(histogram(np.array([0.2] * 5 + [0.8] * 3))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("fall", [2.0, 4.0, 8.0])
def test_of_a_long_tail_less_is_foreground_than_with_otsu(fall: float) -> None:
    places = np.linspace(0, 1, 5000)
    values = -np.log(1 - places * (1 - np.exp(-fall))) / fall
    found, of_otsu = entropy_threshold(histogram(values)), otsu(histogram(values))
    assert found is not None
    assert of_otsu is not None
    assert of_otsu.threshold + 0.02 < found
