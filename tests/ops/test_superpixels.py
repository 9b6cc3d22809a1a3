"""Superpixels: graph segmentation, features and merging against their definitions, and what holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.ops.superpixels import (
    MAX_SEGMENTS,
    graph_segments,
    merge_segments,
    renumbered,
    segment_features,
    smoothed,
)

TOUCHING = np.ones((3, 3))


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise on patches of a few colours."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 6), -(-width // 6), 3))
    image = patches.repeat(6, axis=0).repeat(6, axis=1)[:height, :width]
    return np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)


def assert_dense(ids: np.ndarray) -> None:
    assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))


# Graph segmentation


def plain_segments(image: np.ndarray, sigma: float, k: float, min_size: int) -> np.ndarray:
    """Felzenszwalb and Huttenlocher 2004, section 4, one edge after the other."""
    colours = smoothed(image, sigma)
    height, width = image.shape[:2]
    edges = []
    for y in range(height):
        for x in range(width):
            for there in ((y, x + 1), (y + 1, x), (y + 1, x + 1), (y - 1, x + 1)):
                if 0 <= there[0] < height and there[1] < width:
                    edges.append((float(np.linalg.norm(colours[y, x] - colours[there])), (y, x), there))
    edges.sort(key=lambda edge: edge[0])
    segment = {(y, x): [(y, x)] for y in range(height) for x in range(width)}
    tolerance = {id(members): float(k) for members in segment.values()}
    for minimum in (0, min_size):  # the second pass joins what is too small
        for weight, here, there in edges:
            first, second = segment[here], segment[there]
            alike = weight <= min(tolerance[id(first)], tolerance[id(second)])
            if first is not second and (alike if minimum == 0 else min(len(first), len(second)) < minimum):
                first.extend(second)
                tolerance[id(first)] = weight + k / len(first)
                segment.update(dict.fromkeys(second, first))
    ids = np.array([[id(segment[y, x]) for x in range(width)] for y in range(height)])
    return renumbered(ids)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("sigma", "k", "min_size"), [(0.8, 75, 20), (0.5, 20, 1), (1.2, 300, 5)])
def test_segments_follow_the_definition(seed: int, sigma: float, k: float, min_size: int) -> None:
    image = textured(11 + seed, 23 - seed, seed)
    ours = graph_segments(image, sigma, k, min_size)
    np.testing.assert_array_equal(ours, plain_segments(image, sigma, k, min_size))


@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_segments_are_connected_dense_and_large_enough(height: int, width: int, seed: int, min_size: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ids = graph_segments(image, k=20, min_size=min_size)
    assert ids.shape == (height, width)
    assert_dense(ids)
    np.testing.assert_array_equal(ids, renumbered(ids))
    assert np.bincount(ids.ravel()).min() >= min(min_size, height * width)
    assert all(ndimage.label(ids == i, TOUCHING)[1] == 1 for i in range(ids.max() + 1))


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_image_is_one_segment(value: int) -> None:
    assert not graph_segments(np.full((30, 40, 3), value, np.uint8), min_size=1).any()


def test_a_mirrored_image_has_the_mirrored_segments() -> None:
    image = textured(40, 60)
    ids = graph_segments(image, min_size=10)
    assert ids.max() > 5
    mirrored = graph_segments(image[:, ::-1].copy(), min_size=10)
    np.testing.assert_array_equal(renumbered(mirrored[:, ::-1]), ids)


def test_smoothing_keeps_the_mean_away_from_the_border_and_repeats_the_border() -> None:
    image = np.zeros((21, 21, 3), np.uint8)
    image[10, 10] = 255
    np.testing.assert_allclose(smoothed(image, 1.0).sum((0, 1)), 255, rtol=1e-5)
    image[:] = 255
    np.testing.assert_allclose(smoothed(image, 1.0), 255, rtol=1e-6)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_renumbering_follows_the_first_appearance(values: list[int]) -> None:
    order = list(dict.fromkeys(values))
    assert renumbered(np.array(values)).tolist() == [order.index(value) for value in values]


# Features


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 2**32 - 1),
)
def test_features_are_means_of_the_enlarged_map(
    size: tuple[int, int], more: tuple[int, int], cells: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = renumbered(rng.integers(0, 5, size))
    dense = rng.normal(size=(3, *cells)).astype(np.float32)
    canvas = (size[0] + more[0], size[1] + more[1])
    large = F.interpolate(torch.from_numpy(dense)[None], canvas, mode="bilinear", align_corners=True)[0].numpy()
    cut = large[:, : size[0], : size[1]]
    expected = [cut[:, ids == i].mean(1) for i in range(ids.max() + 1)]
    np.testing.assert_allclose(segment_features(dense, ids, canvas), expected, atol=1e-5)


# Merging


def plainly_merged(ids: np.ndarray, features: np.ndarray, count: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """With a table of all pixels' segments, and every similarity anew for each merge."""
    names = list(range(len(features)))
    table = np.stack([ids == name for name in names])
    vectors = features.astype(np.float64)
    pairs = []
    while len(names) > count:
        sizes = table.sum((1, 2))
        norms = np.linalg.norm(vectors, axis=1)
        products, lengths = vectors @ vectors.T, np.outer(norms, norms)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
        similarity = (cosines + 1 - (sizes[:, None] + sizes) / ids.size).astype(np.float32)
        similarity[np.tril_indices(len(names))] = -np.inf
        i, j = np.unravel_index(similarity.argmax(), similarity.shape)
        pairs.append((names[i], names[j]))
        vectors[i] = (vectors[i] * sizes[i] + vectors[j] * sizes[j]) / (sizes[i] + sizes[j])
        table[i] |= table[j]
        names.pop(j)
        vectors, table = np.delete(vectors, j, 0), np.delete(table, j, 0)
    return table.argmax(0), pairs


def random_case(segments: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = np.concatenate([np.arange(segments), rng.integers(0, segments, 6 * 20 - segments)])
    rng.shuffle(ids)
    features = np.maximum(rng.normal(size=(segments, channels)), 0).astype(np.float32)
    return ids.reshape(6, 20).astype(np.int32), features


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 45), st.integers(0, 2**32 - 1))
def test_merging_follows_the_definition(segments: int, channels: int, count: int, seed: int) -> None:
    ids, features = random_case(segments, channels, seed)
    merged, pairs = merge_segments(ids, features, count)
    expected, expected_pairs = plainly_merged(ids, features, count)
    assert [tuple(pair) for pair in pairs.tolist()] == expected_pairs
    np.testing.assert_array_equal(merged, expected)
    assert_dense(merged)
    assert merged.max() + 1 == min(segments, count)
    assert merged.dtype == np.int32


def test_the_numbers_of_segments_do_not_matter() -> None:
    ids, features = random_case(30, 8, 0)
    features += 0.1
    order = np.random.default_rng(1).permutation(30)
    there = np.argsort(order).astype(np.int32)
    first, second = merge_segments(ids, features, 7).ids, merge_segments(there[ids], features[order], 7).ids
    np.testing.assert_array_equal(renumbered(first), renumbered(second))


def test_where_segments_lie_does_not_matter() -> None:
    ids, features = random_case(30, 8, 0)
    places = np.random.default_rng(1).permutation(ids.size)
    merged = merge_segments(ids.ravel()[places].reshape(10, 12), features, 7).ids
    np.testing.assert_array_equal(merged.ravel(), merge_segments(ids, features, 7).ids.ravel()[places])


def test_the_scale_of_features_does_not_matter() -> None:
    ids, features = random_case(30, 8, 0)
    for scale in (2.0**-60, 2.0**60):
        scaled = merge_segments(ids, features * np.float32(scale), 7)
        np.testing.assert_array_equal(scaled.pairs, merge_segments(ids, features, 7).pairs)


def test_more_segments_than_asked_for_are_nested_in_fewer() -> None:
    ids, features = random_case(40, 5, 3)
    pairs = merge_segments(ids, features, 1).pairs
    for count in (2, 11, 39):
        np.testing.assert_array_equal(merge_segments(ids, features, count).pairs, pairs[: 40 - count])


def test_a_segment_without_features_is_not_preferred() -> None:
    ids = np.repeat(np.arange(4, dtype=np.int32), 5)[None]
    features = np.array([[0, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    assert merge_segments(ids, features, 3).pairs.tolist() == [[2, 3]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(wrong: float) -> None:
    ids, features = random_case(5, 3, 0)
    features[2, 1] = wrong
    with pytest.raises(WeaksegError, match="not all finite"):
        merge_segments(ids, features, 2)


def test_too_many_segments_are_refused_before_memory_runs_out() -> None:
    ids = np.arange(MAX_SEGMENTS + 1, dtype=np.int32)[None]
    with pytest.raises(WeaksegError, match=f"{MAX_SEGMENTS + 1} segments"):
        merge_segments(ids, np.ones((MAX_SEGMENTS + 1, 1), np.float32), 64)


@pytest.mark.parametrize(("values", "count"), [([0, 2, 2], 1), ([0, 1, 3], 1), ([0, 1, 2], 0)])
def test_a_mistake_of_the_caller_is_told(values: list[int], count: int) -> None:
    with pytest.raises(ValueError, match=r"dense|at least 1"):
        merge_segments(np.array([values], np.int32), np.ones((3, 2), np.float32), count)
