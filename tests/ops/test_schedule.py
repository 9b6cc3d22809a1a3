from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weakseg.ops.schedule import poly_factor


def test_falls_from_one_along_the_curve() -> None:
    assert poly_factor(0, 100, 0.9) == 1
    assert poly_factor(50, 100, 0.9) == pytest.approx(0.5**0.9)
    assert poly_factor(50, 100, 2) == pytest.approx(0.25)


def test_changes_only_every_so_many_updates() -> None:
    factors = [poly_factor(step, 30, 0.9, every=10) for step in range(30)]
    assert [factors.index(factor) for factor in factors] == [0] * 10 + [10] * 10 + [20] * 10


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 20), st.floats(0.1, 3))
def test_never_rises_never_reaches_zero_and_holds_its_last_value(steps: int, every: int, power: float) -> None:
    factors = [poly_factor(step, steps, power, every) for step in range(steps + 3)]
    assert all(earlier >= later > 0 for earlier, later in pairwise(factors))
    assert set(factors[steps:]) == {factors[steps - 1]}
