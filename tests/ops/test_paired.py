"""Statistics of paired measurements against numbers worked out by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from weakseg.ops.paired import paired_difference, spread

SCORES = st.lists(st.floats(0, 1).map(lambda value: round(value, 6)), min_size=3, max_size=9)


def test_by_hand() -> None:
    """Differences 1, 2, 6: mean 3, variance (4 + 1 + 9) / 2 = 7, t of 2 degrees of freedom 4.30265."""
    found = paired_difference({0: 11.0, 1: 22.0, 2: 36.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    assert (found.count, found.mean) == (3, 3)
    assert found.deviation == pytest.approx(7**0.5)
    assert found.interval() == pytest.approx((3 - 4.30265 * (7 / 3) ** 0.5, 3 + 4.30265 * (7 / 3) ** 0.5), abs=1e-4)


@given(SCORES)
def test_the_interval_is_the_one_of_the_paired_t_test(values: list[float]) -> None:
    others = [value**2 - 0.1 * place for place, value in enumerate(values)]
    found = paired_difference(dict(enumerate(values)), dict(enumerate(others)))
    assert found is not None
    interval = found.interval()
    expected = stats.ttest_rel(values, others).confidence_interval(0.95)
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_pairs_are_made_by_seed_not_by_order() -> None:
    found = paired_difference({2: 0.5, 0: 0.1, 7: 0.9}, {0: 0.0, 2: 0.5, 1: 0.3})
    assert found is not None
    assert (found.count, found.mean) == (2, pytest.approx(0.05))


def test_what_cannot_be_known_of_one_seed_is_left_open() -> None:
    found = spread([0.25])
    assert (found.count, found.mean, found.deviation, found.interval()) == (1, 0.25, None, None)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None
    with pytest.raises(ValueError, match="no numbers"):
        spread([])


def test_a_constant_gain_is_certain_however_much_the_seeds_differ() -> None:
    values = np.random.default_rng(0).random(5)
    found = paired_difference(dict(enumerate(values + 0.125)), dict(enumerate(values)))
    assert found is not None
    assert found.interval() == pytest.approx((0.125, 0.125))
