"""Simulated weak labels never contradict the mask they come from, and partial label maps show them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage.draw import line
from skimage.measure import label as connected

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.folder import read_folder
from weakseg.data.simulate import rasterise, simulate, simulate_dataset
from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, VOID, Box, Classes, Point, Scribble, WeakLabels


def masks(max_side: int = 12, scale: int = 1):
    """Random label maps; with `scale` > 1 they are made of blocks, so that components have an inside."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side)
    small = hnp.arrays(np.uint8, shapes, elements=st.sampled_from([0, 1, 2, 7, VOID]))
    return small.map(lambda mask: np.kron(mask, np.ones((scale, scale), np.uint8)))


any_mask = st.one_of(masks(), masks(max_side=5, scale=9))
seeds = st.integers(0, 2**32)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def brute_components(mask: np.ndarray, label: int) -> list[np.ndarray]:
    numbers = connected(mask == label, connectivity=2)
    return [numbers == number for number in range(1, numbers.max() + 1)]


def pixels_of(scribble: Scribble) -> set[tuple[int, int]]:
    """The (x, y) pixels under a scribble, drawn segment by segment."""
    pixels = set(scribble.points)
    for (x0, y0), (x1, y1) in zip(scribble.points, scribble.points[1:], strict=False):
        rows, columns = line(y0, x0, y1, x1)
        pixels |= set(zip(columns.tolist(), rows.tolist(), strict=True))
    return pixels


@settings(max_examples=120, deadline=None)
@given(any_mask, seeds, st.integers(1, 20))
def test_marks_lie_on_their_class(mask: np.ndarray, seed: int, min_area: int) -> None:
    labels = simulate(mask, generator(seed), points=3, min_area=min_area)
    for point in labels.points:
        assert mask[point.y, point.x] == point.label != VOID
    for scribble in labels.scribbles:
        for x, y in pixels_of(scribble):
            assert mask[y, x] == scribble.label != VOID


@settings(max_examples=120, deadline=None)
@given(any_mask, seeds, st.integers(1, 20))
def test_every_component_that_is_large_enough_gets_its_marks(mask: np.ndarray, seed: int, min_area: int) -> None:
    labels = simulate(mask, generator(seed), points=2, min_area=min_area)
    for label in range(VOID):
        components = [part for part in brute_components(mask, label) if part.sum() >= min_area]
        boxes = {(b.x0, b.y0, b.x1, b.y1) for b in labels.boxes if b.label == label}
        tight = {(c.min(), r.min(), c.max() + 1, r.max() + 1) for r, c in map(np.nonzero, components)}
        assert boxes == (set() if label == BACKGROUND else tight)

        scribbles = [pixels_of(s) for s in labels.scribbles if s.label == label]
        points = [(p.x, p.y) for p in labels.points if p.label == label]
        assert len(scribbles) == len(components)
        assert len(points) == len(set(points))
        for part in components:
            assert sum(all(part[y, x] for x, y in scribble) for scribble in scribbles) == 1
            assert 1 <= sum(bool(part[y, x]) for x, y in points) <= 2


@settings(max_examples=60, deadline=None)
@given(any_mask, seeds)
def test_tags_are_the_classes_of_the_mask(mask: np.ndarray, seed: int) -> None:
    labels = simulate(mask, generator(seed))
    assert labels.tags == set(mask.ravel().tolist()) - {BACKGROUND, VOID}
    assert labels.present() == labels.tags


@settings(max_examples=60, deadline=None)
@given(any_mask, seeds)
def test_the_seed_decides_and_kinds_do_not_disturb_each_other(mask: np.ndarray, seed: int) -> None:
    labels = simulate(mask, generator(seed), points=2)
    assert simulate(mask, generator(seed), points=2) == labels
    only_scribbles = simulate(mask, generator(seed), tags=False, boxes=False, points=0)
    assert only_scribbles == WeakLabels(scribbles=labels.scribbles)
    only_points = simulate(mask, generator(seed), tags=False, boxes=False, points=2, scribbles=False)
    assert only_points == WeakLabels(points=labels.points)


def test_another_seed_gives_other_points_and_scribbles() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:35, 8:50] = 3
    first, second = simulate(mask, generator(0)), simulate(mask, generator(1))
    assert first.boxes == second.boxes
    assert first.points != second.points
    assert first.scribbles != second.scribbles


@pytest.mark.parametrize("value", [BACKGROUND, VOID])
def test_a_mask_without_objects_is_tagged_as_empty(value: int) -> None:
    labels = simulate(np.full((9, 9), value, np.uint8), generator(0), background=False)
    assert labels == WeakLabels(tags=frozenset())


def test_background_gets_points_and_a_scribble_but_no_box() -> None:
    labels = simulate(np.zeros((9, 9), np.uint8), generator(0))
    assert labels.boxes == ()
    assert [p.label for p in labels.points] == [s.label for s in labels.scribbles] == [BACKGROUND]


def test_points_keep_away_from_the_border() -> None:
    mask = np.zeros((60, 60), np.uint8)
    rows, columns = np.mgrid[:60, :60]
    mask[(rows - 30) ** 2 + (columns - 30) ** 2 <= 20**2] = 1
    labels = simulate(mask, generator(0), points=50, background=False)
    assert len(labels.points) == 50
    assert all(np.hypot(p.x - 30, p.y - 30) < 11 for p in labels.points)


@pytest.mark.parametrize("seed", range(5))
def test_a_scribble_runs_along_the_middle_from_end_to_end(seed: int) -> None:
    mask = np.zeros((21, 120), np.uint8)
    mask[5:16, 10:110] = 1
    mask[3:18, 58:63] = 1  # the deepest place is in the middle, not at an end
    (scribble,) = simulate(mask, generator(seed), background=False).scribbles
    columns = [x for x, _ in scribble.points]
    assert max(columns) - min(columns) > 50
    assert sum(abs(y - 10) <= 1 for _, y in pixels_of(scribble)) > 0.8 * len(pixels_of(scribble))


def test_a_curved_scribble_is_thinned_to_few_vertices() -> None:
    mask = np.kron(np.pad(np.tri(8, dtype=np.uint8), 1), np.ones((10, 10), np.uint8))
    (scribble,) = simulate(mask, generator(0), background=False).scribbles
    assert len(scribble.points) < len(pixels_of(scribble)) / 3


def test_small_components_are_tagged_but_not_marked() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:5, 2:5] = 4
    labels = simulate(mask, generator(0), min_area=10, background=False)
    assert labels == WeakLabels(tags=frozenset({4}))
    (box,) = simulate(mask, generator(0), min_area=9, background=False).boxes
    assert box == Box(4, 2, 2, 5, 5)


def test_rasterise_round_trip_matches_the_mask() -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:25, 5:18] = 2
    mask[3:20, 22:38] = 5
    partial = rasterise(simulate(mask, generator(0)), mask.shape)
    known = partial != VOID
    assert set(np.unique(partial[known]).tolist()) == {0, 2, 5}
    assert (partial[known] == mask[known]).all()


marks = st.builds(Point, st.sampled_from([0, 1, 2]), st.integers(0, 9), st.integers(0, 7))


@settings(max_examples=100, deadline=None)
@given(st.lists(marks, max_size=6), st.sampled_from([0, 1, 1.5, 3]))
def test_rasterise_gives_each_pixel_to_its_nearest_mark(points: list[Point], radius: float) -> None:
    partial = rasterise(WeakLabels(points=tuple(points)), (8, 10), radius)
    for y in range(8):
        for x in range(10):
            near = [(np.hypot(p.x - x, p.y - y), p.label) for p in points]
            least = min((distance for distance, _ in near), default=np.inf)
            nearest = {label for distance, label in near if distance == least}
            assert partial[y, x] == (nearest.pop() if least <= radius and len(nearest) == 1 else VOID)
    assert (rasterise(WeakLabels(points=tuple(points[::-1])), (8, 10), radius) == partial).all()


def test_rasterise_draws_whole_lines() -> None:
    labels = WeakLabels(scribbles=(Scribble(3, ((1, 1), (1, 5), (4, 5))),))
    partial = rasterise(labels, (8, 8))
    assert sorted(map(tuple, np.argwhere(partial == 3).tolist())) == [
        *((row, 1) for row in range(1, 6)),
        (5, 2),
        (5, 3),
        (5, 4),
    ]
    assert (partial != VOID).sum() == 8


def test_rasterise_refuses_marks_outside_the_image() -> None:
    with pytest.raises(WeaksegError, match="label 1 at x=4, y=0 lies outside its image of 4×6 pixels"):
        rasterise(WeakLabels(points=(Point(1, 4, 0),)), (6, 4))


@dataclass(frozen=True)
class ArrayMask:
    values: tuple[tuple[int, ...], ...]

    def read(self) -> np.ndarray:
        return np.array(self.values, np.uint8)

    def fingerprint(self) -> str:
        return repr(self.values)


def block_mask(label: int) -> ArrayMask:
    mask = np.zeros((24, 30), np.uint8)
    mask[4:20, 6:25] = label
    mask[0] = VOID
    return ArrayMask(tuple(map(tuple, mask.tolist())))


def sample(name: str, label: int = 1) -> Sample:
    return Sample(name, Path("images") / f"{name}.jpg", mask=block_mask(label))


def data_set(**splits: list[Sample]) -> Dataset:
    return Dataset(Path("data"), "voc", Classes(["Katze", "犬"]), splits)


def test_a_data_set_is_written_in_the_folder_format(tmp_path: Path) -> None:
    calls: list[None] = []
    out = tmp_path / "new" / "labels.json"
    data = data_set(train=[sample("sub/a b"), sample("ü", 2)], val=[sample("c")])
    simulate_dataset(data, ["train", "val"], out, points=2, progress=lambda: calls.append(None))
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["classes"] == ["Katze", "犬"]
    assert list(written["images"]) == ["sub/a b.jpg", "ü.jpg", "c.jpg"]
    assert [entry["split"] for entry in written["images"].values()] == ["train", "train", "val"]
    assert len(calls) == 3
    entry = written["images"]["ü.jpg"]
    assert entry["tags"] == ["犬"]
    assert entry["boxes"] == [{"class": "犬", "box": [6, 4, 25, 20]}]
    assert [point["class"] for point in entry["points"]] == ["background"] * 2 + ["犬"] * 2
    assert [scribble["class"] for scribble in entry["scribbles"]] == ["background", "犬"]
    mask = block_mask(2).read()
    for mark in entry["scribbles"]:
        assert {int(mask[y, x]) for x, y in mark["points"]} == {0 if mark["class"] == "background" else 2}


def test_the_written_labels_are_read_back_as_simulated(tmp_path: Path) -> None:
    samples = [
        sample("sub/a b"),
        sample("ü", 2),
        Sample("dot.in name", Path("x.png"), mask=ArrayMask(((1, 0), (0, 0)))),
    ]
    for each in samples:
        image = tmp_path / "images" / f"{each.name}{each.image.suffix}"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros_like(each.mask.read())).save(image)
    simulate_dataset(data_set(some=samples), ["some"], tmp_path / "labels.json", seed=3, points=2, min_area=1)
    read = read_folder(tmp_path)
    assert read.classes == Classes(["Katze", "犬"])
    labels = {each.name: each.labels for each in read.split("some")}
    assert labels == {
        each.name: simulate(each.mask.read(), np.random.default_rng([3, *each.name.encode()]), points=2, min_area=1)
        for each in samples
    }
    assert any(len(scribble.points) == 1 for scribble in labels["dot.in name"].scribbles)


def test_labels_of_an_image_depend_on_its_name_and_the_seed_alone(tmp_path: Path) -> None:
    def written(seed: int, *samples: Sample) -> dict[str, object]:
        out = tmp_path / "labels.json"
        simulate_dataset(data_set(train=list(samples)), ["train"], out, seed=seed)
        return json.loads(out.read_text(encoding="utf-8"))["images"]

    forwards = written(5, sample("a"), sample("b"), sample("c"))
    assert written(5, sample("c"), sample("a")) == {name: forwards[name] for name in ("c.jpg", "a.jpg")}
    assert forwards["a.jpg"] != forwards["b.jpg"]
    assert written(6, sample("a"))["a.jpg"] != forwards["a.jpg"]


def test_only_the_chosen_kinds_are_written(tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    simulate_dataset(data_set(train=[sample("a")]), ["train"], out, kinds=["points", "tags"])
    assert set(json.loads(out.read_text())["images"]["a.jpg"]) == {"tags", "points", "split"}


def test_mistakes_are_explained_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    bare = Sample("bare", Path("bare.jpg"))
    data = data_set(train=[sample("a")], trainval=[sample("a"), sample("b")], test=[bare])
    with pytest.raises(WeaksegError, match=r"Cannot simulate clicks: .* tags, boxes, points, scribbles"):
        simulate_dataset(data, ["train"], out, kinds=["points", "clicks"])
    with pytest.raises(WeaksegError, match="Cannot simulate nothing"):
        simulate_dataset(data, ["train"], out, kinds=[])
    with pytest.raises(WeaksegError, match='no split "training"'):
        simulate_dataset(data, ["training"], out)
    with pytest.raises(WeaksegError, match='"a" is in the splits "train" and "trainval"'):
        simulate_dataset(data, ["train", "trainval"], out)
    with pytest.raises(WeaksegError, match='image "bare" of split "test" has no mask'):
        simulate_dataset(data, ["test"], out)
    assert list(tmp_path.iterdir()) == []
