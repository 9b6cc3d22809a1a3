"""The lattice and filtering on it, against plain sums over dictionaries and exact Gaussians."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from weakseg.errors import WeaksegError
from weakseg.ops.lattice_filter import gaussian_filter
from weakseg.ops.permutohedral import Lattice, Packing, _number, _number_by_sorting, coordinate_ranges, embed


def points(dimension: int, count: int = 30, spread: float = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (count, dimension)).astype(np.float32)


features = st.integers(1, 5).flatmap(
    lambda d: arrays(
        np.float32, st.tuples(st.integers(1, 9), st.just(d)), elements=st.floats(-20, 20, width=16)
    )  # few bits: many points on faces
)


def vertex_keys(columns: np.ndarray) -> np.ndarray:
    """The coordinates of every point's vertices, (N, d + 1 vertices, d + 1 coordinates)."""
    simplices = embed(columns)
    d, n = columns.shape
    keys = np.empty((n, d + 1, d + 1), np.int64)
    for k in range(d + 1):
        keys[:, k] = ((d + 1) * simplices.corner + k - (d + 1) * (simplices.rank > d - k)).T
    return keys


def plain_filter(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Splat, blur and slice as written in the paper, with a dictionary of vertices, in double precision."""
    d = rows.shape[1]
    padded = np.concatenate([rows, np.zeros((-len(rows) % 4, d), np.float32)])
    weights = embed(np.ascontiguousarray(padded.T)).barycentric.T.astype(np.float64)
    keys = [[tuple(int(x) for x in key) for key in simplex] for simplex in vertex_keys(np.ascontiguousarray(padded.T))]
    table = defaultdict(float, {key: 0.0 for simplex in keys for key in simplex})
    for simplex, weight, value in zip(keys, weights, values, strict=False):
        for key, w in zip(simplex, weight, strict=True):
            table[key] += w * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] -= d + 1
        table = {
            key: value + (table.get(tuple(key - step), 0.0) + table.get(tuple(key + step), 0.0)) / 2
            for key, value in table.items()
        }
    gathered = [sum(w * table[key] for key, w in zip(*pair, strict=True)) for pair in zip(keys, weights, strict=True)]
    return np.array(gathered[: len(rows)]) / (1 + 2.0**-d)


@settings(max_examples=60)
@given(features)
def test_filter_equals_the_sums_of_the_paper(rows: np.ndarray) -> None:
    values = np.random.default_rng(0).random(len(rows)).astype(np.float32)
    result = gaussian_filter(Lattice.of(rows), values[None])[0]
    np.testing.assert_allclose(result, plain_filter(rows, values), rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(features)
def test_points_are_the_weighted_means_of_their_vertices(rows: np.ndarray) -> None:
    columns = np.ascontiguousarray(rows.T)
    keys, weights = vertex_keys(columns), embed(columns).barycentric.T
    assert (keys.sum(axis=2) == 0).all()
    assert weights.min() > -1e-5
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    # The lattice's coordinates are an isometry of the features, up to one scale: √(2/3) (d + 1).
    mean = (weights[..., None] * keys).sum(axis=1)
    d = rows.shape[1]
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1) * np.sqrt(2 / 3) * (d + 1)
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), lengths, rtol=1e-4, atol=1e-3)


@settings(max_examples=60)
@given(features)
def test_numbering_by_hash_and_by_sorting_are_the_same(rows: np.ndarray) -> None:
    columns = np.ascontiguousarray(rows.T)
    packing = Packing.of(coordinate_ranges(columns.min(axis=1), columns.max(axis=1)))
    assert packing is not None
    for hashed, sorted_ in zip(_number(columns, packing), _number_by_sorting(columns), strict=True):
        np.testing.assert_array_equal(hashed, sorted_)


def test_tables_grow_beyond_the_first_guess() -> None:
    rows = points(5, 3000, spread=30)  # every point in a simplex of its own
    lattice = Lattice.of(rows)
    assert lattice.vertices > 3000 * 4
    for hashed, sorted_ in zip(
        (lattice.offsets, lattice.weights, lattice.neighbours),
        _number_by_sorting(np.ascontiguousarray(rows.T)),
        strict=True,
    ):
        np.testing.assert_array_equal(hashed, sorted_)


def test_neighbours_are_mutual() -> None:
    lattice = Lattice.of(points(3, 200))
    for before, after in lattice.neighbours:
        found = np.flatnonzero(before < lattice.vertices)
        assert len(found)
        np.testing.assert_array_equal(after[before[found]], found)
        assert (before < lattice.vertices).sum() == (after < lattice.vertices).sum()


def test_origin_joins_the_lattice_unless_points_come_in_fours() -> None:
    far = points(2, 8) + 100
    assert Lattice.of(far[:7]).vertices == Lattice.of(np.vstack([far[:7], [[0, 0]]])).vertices
    assert len(Lattice.of(far[:7]).offsets) == 7
    assert Lattice.of(far[:4]).vertices < Lattice.of(far[:3]).vertices + 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 9, 20])
def test_channels_are_filtered_independently(channels: int) -> None:
    lattice = Lattice.of(points(5, 50, spread=1))
    values = np.random.default_rng(1).normal(size=(channels, 50)).astype(np.float32)
    together = gaussian_filter(lattice, values)
    assert together.shape == values.shape
    for value, result in zip(values, together, strict=True):
        np.testing.assert_allclose(gaussian_filter(lattice, value[None])[0], result, atol=1e-6)


def test_filter_is_linear_and_keeps_signs() -> None:
    lattice = Lattice.of(points(3, 80, spread=1))
    a, b = np.random.default_rng(2).random((2, 1, 80)).astype(np.float32)
    combined = gaussian_filter(lattice, 2 * a - 3 * b)
    np.testing.assert_allclose(combined, 2 * gaussian_filter(lattice, a) - 3 * gaussian_filter(lattice, b), atol=1e-5)
    assert (gaussian_filter(lattice, a) >= 0).all()


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_normalised_filter_is_close_to_the_gaussian(dimension: int) -> None:
    rows = points(dimension, 400, spread=1.0)
    values = np.sin(rows[None, :, 0])
    kernel = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(-1) / 2)
    exact = kernel @ values[0] / kernel.sum(1)
    lattice = Lattice.of(rows)
    approximate = (gaussian_filter(lattice, values) / gaussian_filter(lattice, np.ones_like(values)))[0]
    assert np.sqrt(((approximate - exact) ** 2).mean()) < 0.2 * np.sqrt((exact**2).mean())


def test_points_far_apart_do_not_mix() -> None:
    """Keys of 16 bits would wrap here, and these do not fit into 64 bits either."""
    rows = points(5, 60, spread=1) * 1e4
    columns = np.ascontiguousarray(rows.T)
    assert Packing.of(coordinate_ranges(columns.min(axis=1), columns.max(axis=1))) is None
    lattice = Lattice.of(rows)
    assert lattice.vertices == 60 * 6
    values = np.random.default_rng(4).random((1, 60)).astype(np.float32)
    own = (lattice.weights**2).sum(axis=1) * lattice.gain
    assert (gaussian_filter(lattice, values)[0] >= own * values[0] * 0.999).all()
    np.testing.assert_allclose(gaussian_filter(lattice, values)[0], plain_filter(rows, values[0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 2)), "at least one point"),
        (np.zeros((3, 0)), "at least one point"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.array([[1.0, np.inf]]), "not finite"),
        (np.array([[0.0, 0.0], [1e9, 0.0]]), "reach 1e\\+09 standard deviations.*larger scales"),
    ],
)
def test_what_is_no_point_is_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        Lattice.of(rows.astype(np.float32))
