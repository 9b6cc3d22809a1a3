from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.opening import open_dataset
from weakseg.data.toy import LABELS, Brush, Canvas, Scene, Thing, draw_scene, make_toy
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, Box, palette

PAIRS = (("sheep", "goose"), ("cow", "fox"), ("car", "boat"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "toy"
    make_toy(folder, train=8, val=3, size=48)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(48, np.random.default_rng([7, index])) for index in range(300)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, kind: str, sample: Sample) -> np.ndarray:
    return np.asarray(Image.open(folder / kind / f"{sample.name}.png"))


def all_samples(dataset: Dataset) -> Iterator[Sample]:
    for samples in dataset.splits.values():
        yield from samples


# What make_toy writes.


def test_the_same_arguments_give_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "again", train=8, val=3, size=48)
    assert contents(tmp_path / "again") == contents(toy)


def test_pictures_do_not_depend_on_how_many_are_made(toy: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "fewer", train=2, val=1, size=48)
    per_picture = {name: data for name, data in contents(tmp_path / "fewer").items() if name.endswith((".jpg", ".png"))}
    assert len(per_picture) == 3 * 4
    assert per_picture.items() <= contents(toy).items()


def test_seeds_and_splits_show_other_scenes(toy: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "seed 1", seed=1, train=8, val=3, size=48)
    pictures = [data for folder in (toy, tmp_path / "seed 1") for data in contents(folder / "JPEGImages").values()]
    assert len(set(pictures)) == len(pictures) == 22


def test_is_a_sound_voc_data_set(toy: Path) -> None:
    dataset = open_dataset(toy)
    assert dataset.format == "voc"
    assert dataset.classes.names == tuple(LABELS)
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 8, "val": 3}
    for sample in all_samples(dataset):
        assert np.asarray(Image.open(sample.image)).shape == (48, 48, 3)


def test_tags_and_boxes_are_those_of_the_masks(toy: Path) -> None:
    for sample in all_samples(open_dataset(toy)):
        assert sample.mask is not None
        labels, instances = sample.mask.read(), read(toy, "SegmentationObject", sample)
        assert sample.labels.tags == frozenset(np.unique(labels)) - {0, VOID}
        boxes = set()
        for instance in set(np.unique(instances)) - {0, VOID}:
            rows, columns = np.nonzero(instances == instance)
            label = int(labels[rows[0], columns[0]])
            boxes.add(Box(label, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        assert set(sample.labels.boxes) == boxes


@pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationObject", "ContextMask"])
def test_label_maps_have_the_colours_of_voc(toy: Path, folder: str) -> None:
    for path in sorted((toy / folder).iterdir()):
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert picture.getpalette() == palette()


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    calls: list[None] = []
    make_toy(tmp_path, train=2, val=1, size=32, progress=lambda: calls.append(None))
    assert len(calls) == 3


def test_an_interrupted_making_is_no_data_set_and_can_go_on(toy: Path, tmp_path: Path) -> None:
    folder, made = tmp_path / "toy", 0

    def interrupt() -> None:
        nonlocal made
        made += 1
        if made == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_toy(folder, train=8, val=3, size=48, progress=interrupt)
    with pytest.raises(WeaksegError):
        open_dataset(folder)
    make_toy(folder, train=8, val=3, size=48)
    assert contents(folder) == contents(toy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train is 0; it must be at least 1"),
        ({"val": -1}, "val is -1; it must be at least 0"),
        ({"seed": -5}, "seed is -5; it must be at least 0"),
        ({"size": 16}, "size is 16; it must be 32 … 1024 pixels"),
        ({"size": 4096}, "size is 4096; it must be 32 … 1024 pixels"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        make_toy(tmp_path / "toy", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "toy").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")
    with pytest.raises(WeaksegError, match=r"files that are no toy data; nothing was written\. Choose another folder"):
        make_toy(tmp_path, train=1, val=1, size=32)
    assert contents(tmp_path) == {"thesis.tex": b"the only copy"}


def test_another_toy_data_set_is_left_alone(toy: Path) -> None:
    before = contents(toy)
    with pytest.raises(WeaksegError, match=r"toy data made with .*'train': 8"):
        make_toy(toy, train=9, val=3, size=48)
    assert contents(toy) == before


# What the scenes are like.


def test_label_maps_of_a_scene_agree(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert np.array_equal(scene.labels == VOID, scene.instances == VOID)
        assert np.array_equal(scene.labels == 0, scene.instances == 0)
        on_things = (scene.labels > 0) & (scene.labels != VOID)
        assert not scene.contexts[on_things].any()
        for instance in np.unique(scene.instances[on_things]):
            assert np.unique(scene.labels[scene.instances == instance]).size == 1


def test_scenes_have_one_to_three_things_of_all_classes(scenes: list[Scene]) -> None:
    counts = [len(set(np.unique(scene.instances)) - {0, VOID}) for scene in scenes]
    assert set(counts) == {1, 2, 3}
    images_of_class = [sum(bool((scene.labels == label).any()) for scene in scenes) for label in LABELS.values()]
    assert min(images_of_class) > 0.15 * len(scenes)


def test_a_context_goes_with_its_class_but_not_always(scenes: list[Scene]) -> None:
    with_class, without_class = [], []
    for scene in scenes:
        for label in LABELS.values():
            seen = bool((scene.contexts == label).any())
            (with_class if (scene.labels == label).any() else without_class).append(seen)
    assert 0.8 < np.mean(with_class) < 0.95
    assert 0.02 < np.mean(without_class) < 0.15


def test_paired_classes_share_their_colours(scenes: list[Scene]) -> None:
    pixels = {name: [scene.image[scene.labels == label] for scene in scenes] for name, label in LABELS.items()}
    mean = {name: np.concatenate(parts).mean(0) for name, parts in pixels.items()}
    distance = {pair: float(np.linalg.norm(mean[pair[0]] - mean[pair[1]])) for pair in combinations(LABELS, 2)}
    assert sorted(distance, key=lambda pair: distance[pair])[:3] == sorted(PAIRS, key=lambda pair: distance[pair])


def test_the_size_changes_the_resolution_and_not_the_scene() -> None:
    small, large = (draw_scene(size, np.random.default_rng([7, 4])) for size in (48, 96))
    assert large.labels.shape == (96, 96)
    coarse = large.labels[::2, ::2]
    judged = (coarse != VOID) & (small.labels != VOID)
    assert (coarse == small.labels)[judged].mean() > 0.98


def test_void_lines_are_thin() -> None:
    """Void are just the pixels that more than one thing shares. Where thin things cross, lines may run together."""
    void = [draw_scene(96, np.random.default_rng([8, index])).labels == VOID for index in range(40)]
    thick = [sliding_window_view(np.pad(mask, 3), (4, 4)).all((2, 3)) for mask in void]
    in_blocks = [sliding_window_view(blocks, (4, 4)).any((2, 3)).sum() for blocks in thick]
    assert sum(in_blocks) < 0.01 * sum(mask.sum() for mask in void)


# How things are drawn.


def test_a_mirrored_brush_draws_the_mirror_image() -> None:
    pictures = []
    for mirrored in (False, True):
        canvas = Canvas(48)
        canvas.add(Thing(grain=0))
        brush = Brush(canvas, canvas.add(Thing(grain=0, label=1)), 0.5, 0.75, 0.5, mirrored)
        brush.polygon([(0, 0), (0, 0.8), (0.6, 0.3)], (255, 255, 255))
        pictures.append(np.asarray(canvas.owners))
    differing = pictures[0][:, 1:] != pictures[1][:, 1:][:, ::-1]
    assert pictures[0].any()
    assert differing.sum() <= 0.05 * pictures[0].sum()
