"""Instances: centroids, clusters, connected parts, files, and ground truth drawn as numbered objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.errors import WeaksegError
from weakseg.files import write_npz
from weakseg.ops.instances import Instances, centroids, clusters, compressed, connected_instances, drawn_instances


def towards(*centres: tuple[int, int], size: tuple[int, int] = (9, 14)) -> np.ndarray:
    """A field that leads every pixel to the nearest of some centres."""
    grid = np.indices(size)
    ways = np.stack([np.array(centre)[:, None, None] - grid for centre in centres])
    nearest = np.hypot(ways[:, 0], ways[:, 1]).argmin(0)
    return np.take_along_axis(ways, nearest[None, None], 0)[0].astype(np.float32)


def test_a_field_without_displacements_keeps_every_pixel_and_is_one_cluster() -> None:
    field = np.zeros((2, 3, 5), np.float32)
    np.testing.assert_array_equal(centroids(field), np.indices((3, 5)))
    masks = clusters(field, centroids(field))
    assert masks.shape == (1, 3, 5)
    assert masks.all()


def test_pixels_gather_at_their_centres() -> None:
    field = towards((4, 3), (4, 10))
    ends = centroids(field)
    assert {tuple(end) for end in ends.reshape(2, -1).T.tolist()} == {(4, 3), (4, 10)}
    masks = clusters(field, ends, still=1.5)
    assert masks.sum(0).tolist() == np.ones((9, 14)).tolist(), "every pixel is in one cluster"
    assert [mask[4, 3] != mask[4, 10] for mask in masks] == [True, True]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_no_pixel_leaves_the_map(height: int, width: int, seed: int) -> None:
    field = np.random.default_rng(seed).normal(0, 5, (2, height, width)).astype(np.float32)
    ends = centroids(field, steps=7)
    assert ends.min() >= 0
    assert ends[0].max() < height
    assert ends[1].max() < width
    masks = clusters(field, ends)
    assert masks.any((1, 2)).all()
    assert (masks.sum(0) == 1).all()


@given(st.lists(st.integers(-5, 5), min_size=1))
def test_compressing_keeps_the_order(values: list[int]) -> None:
    numbers = compressed(np.array(values))
    assert sorted(set(numbers.tolist())) == list(range(len(set(values))))
    assert np.array_equal(np.argsort(numbers, kind="stable"), np.argsort(values, kind="stable"))


def test_masks_are_split_into_connected_parts() -> None:
    mask = np.zeros((6, 8), bool)
    mask[0:3, 0:3] = mask[4, 6] = True
    mask[3, 3] = True  # touches a corner only
    scores = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    found = connected_instances([scores], [mask], [7], (6, 8), min_area=2)
    assert found.labels.tolist() == [7, 7, 7]
    assert found.masks.sum((1, 2)).tolist() == [9, 1, 1]
    assert found.scores.tolist() == [scores[2, 2], 0, 0]
    assert found.numbered().max() == 1


def test_nothing_found_is_an_empty_list() -> None:
    found = connected_instances([], [], [], (6, 8), 1)
    assert found.masks.shape == (0, 6, 8)
    assert not found.numbered().any()


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((3, 5, 7)) < 0.5
    saved = Instances(np.array([1, 2, 2], np.int16), np.array([0.5, 0.0, 1.0], np.float32), masks)
    saved.save(tmp_path / "a.npz")
    loaded = Instances.load(tmp_path / "a.npz")
    assert loaded.labels.tolist() == [1, 2, 2]
    assert loaded.scores.tolist() == [0.5, 0.0, 1.0]
    assert np.array_equal(loaded.masks, masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "it holds masks, scores, expected labels, scores, masks"),
        ({"labels": np.array([1, 2])}, "labels are int64"),
        ({"labels": np.array([0, 1], np.int16)}, "labels are not all classes"),
        ({"scores": np.array([1, np.nan], np.float32)}, "scores not all numbers"),
        ({"masks": np.zeros((3, 4, 5), bool)}, r"masks \(3, 4, 5\)"),
        ({"masks": np.zeros((2, 4, 5), np.uint8)}, "masks uint8"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    arrays = {
        "labels": np.array([1, 2], np.int16),
        "scores": np.ones(2, np.float32),
        "masks": np.zeros((2, 4, 5), bool),
        **change,
    }
    write_npz(tmp_path / "a.npz", {name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(WeaksegError, match=message):
        Instances.load(tmp_path / "a.npz")


def test_objects_get_the_class_of_most_of_their_pixels() -> None:
    objects = np.array([[0, 1, 1, 255], [4, 4, 1, 2], [4, 4, 0, 2]], np.uint8)
    labels = np.array([[0, 3, 3, 255], [5, 5, 1, 255], [255, 0, 0, 0]], np.uint8)
    drawn = drawn_instances(objects, labels)
    assert drawn.labels.tolist() == [3, 5], "object 2 has no pixel of a class"
    assert drawn.masks.sum((1, 2)).tolist() == [3, 4]
    assert drawn_instances(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8)).masks.shape == (0, 2, 3)
