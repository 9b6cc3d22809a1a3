"""Trust without ground truth: the definitions, and the order that it gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from weakseg.ops.otsu import histogram, otsu
from weakseg.ops.trust import contrast, image_trust, rank_correlation, trust_of

SIDE = 16


def hill(height: float = 1.0, width: float = 3.0) -> np.ndarray:
    """A map (16, 16) with one round hill in the middle."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - 7.5
    return (height * np.exp(-(rows**2 + columns**2) / (2 * width**2))).astype(np.float32)


@given(seed=st.integers(0, 50), share=st.floats(0.1, 0.9))
def test_contrast_is_the_correlation_ratio(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    values, inside = rng.random((6, 7)).astype(np.float32), rng.random((6, 7)) < share
    found = contrast(values, inside)
    if not inside.any() or inside.all() or values[inside].mean() <= values[~inside].mean():
        assert found == 0
        return
    assert found == pytest.approx(np.corrcoef(values.ravel(), inside.ravel())[0, 1] ** 2, rel=1e-4)


def test_no_mask_has_more_contrast_than_otsus() -> None:
    values = hill()
    parts = otsu(histogram(values))
    assert parts is not None
    best = contrast(values, values > parts.threshold)
    assert best == pytest.approx(parts.separability, abs=0.01)
    assert all(contrast(values, values > level) <= best + 0.01 for level in np.linspace(0.05, 0.95, 19))


def test_trust_is_all_where_map_and_mask_say_the_same_clearly() -> None:
    inside = hill() > 0.5
    trust = trust_of(inside.astype(np.float32), inside, inside)
    assert (trust.fit, trust.contrast, trust.value) == pytest.approx((1, 1, 1))
    assert trust.covered == inside.mean()


def test_a_mask_that_leaves_its_map_is_trusted_less_the_farther_it_goes() -> None:
    activation = hill()
    before = activation > 0.4
    values = [trust_of(activation, before, np.roll(before, shift, 1)).value for shift in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("after", [np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)])
def test_a_mask_of_nothing_or_everything_is_not_trusted(after: np.ndarray) -> None:
    activation = hill()
    assert trust_of(activation, activation > 0.4, after).value == 0
    assert contrast(np.full((SIDE, SIDE), 0.5, np.float32), activation > 0.4) == 0


def test_an_image_is_trusted_the_more_the_stronger_and_the_fewer_its_maps_are() -> None:
    inside = hill() > 0.4
    one, two = hill()[None], np.stack([hill(), np.roll(hill(0.5), 4, 1)])
    assert image_trust(one, inside) == pytest.approx(one[0][inside].mean())
    assert image_trust(0.5 * one, inside) == pytest.approx(image_trust(one, inside) / 2)
    assert image_trust(two, inside) == pytest.approx(two.max(0)[inside].mean() * 2 / 3)
    assert image_trust(np.ones((1, SIDE, SIDE), np.float32), inside) == 1
    assert image_trust(one, np.zeros((SIDE, SIDE), bool)) == 0


numbers = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=2, max_size=20)


@given(pairs=numbers)
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-9)
