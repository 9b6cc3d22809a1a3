"""Otsu's threshold: the definition, by trying all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.ops.otsu import BINS, histogram, otsu

counts_of = st.lists(st.tuples(st.integers(0, BINS - 1), st.integers(1, 50)), min_size=1, max_size=12)


@given(given_counts=counts_of)
def test_no_threshold_divides_better(given_counts: list[tuple[int, int]]) -> None:
    counts = np.zeros(BINS, np.int64)
    for place, count in given_counts:
        counts[place] += count
    values = np.repeat((np.arange(BINS) + 0.5) / BINS, counts)
    parts = otsu(counts)
    if np.count_nonzero(counts) == 1:
        assert parts is None
        return
    assert parts is not None

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        if not (len(low) and len(high)):
            return 0.0
        return len(low) * len(high) / len(values) ** 2 * (low.mean() - high.mean()) ** 2

    best = max(between(k / BINS) for k in range(1, BINS))
    assert between(parts.threshold) == pytest.approx(best, rel=1e-9)
    assert parts.separability == pytest.approx(best / values.var(), rel=1e-6)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_every_value_falls_into_its_bin(values: list[float]) -> None:
    counts = histogram(np.array(values))
    assert counts.sum() == len(values)
    for place in np.flatnonzero(counts):
        inside = [v for v in values if place / BINS <= v and (v < (place + 1) / BINS or place == BINS - 1)]
        assert counts[place] == len(inside)


def test_two_values_are_divided_in_the_middle() -> None:
    parts = otsu(histogram(np.array([0.2] * 5 + [0.8] * 3)))
    assert parts is not None
    assert parts.threshold == pytest.approx(0.5, abs=0.01)
    assert parts.separability == pytest.approx(1)
