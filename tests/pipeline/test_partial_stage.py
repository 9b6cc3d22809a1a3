"""The stage of partial label maps: every kind of label, mixed, shared, killed and gone on with; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import in_two_processes, killed_at, process
from tiny import CLASSES, artifacts, set_options, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.images import read_image, read_label_map
from weakseg.data.opening import open_dataset
from weakseg.data.simulate import rasterise
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.labels import UNLABELLED, VOID, Box, Classes, Point, Scribble, WeakLabels
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.partial import activation_in_box, box_labels, tag_labels
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.stages.masks import Masks
from weakseg.pipeline.stages.partial import Partial, partial_path
from weakseg.pipeline.stages.segment import ReadLabels

SIZE = (12, 14)
ALONE = ("cam=null", "maps=null", "segment=null", "scores=null", "partial.maps=null", "runtime.device=cpu")
"""Changes that leave nothing but the stage."""
SHORT = tuple(
    f"{stage}.{change}"
    for stage in ("cam", "segment")
    for change in (
        "model.backbone={name: small, output_stride: 8, weights: null}",
        "augment={scale_range: [0.75, 1.25], crop: 40}",
        "train={steps: 2, batch_size: 4}",
    )
)


def some_maps() -> ActivationMaps:
    maps = np.random.default_rng(5).random((2, *SIZE), np.float32)
    return ActivationMaps(np.array([1, 2], np.int16), maps, SIZE, stride=1)


def test_the_more_precise_label_wins() -> None:
    strokes = (Scribble(0, ((0, 3), (13, 3))), Scribble(2, ((9, 9),)))
    labels = WeakLabels(frozenset({1, 2}), (Box(1, 0, 0, 9, 9),), (Point(2, 3, 3),), strokes)
    maps = some_maps()
    spots = rasterise(WeakLabels(points=labels.points), SIZE, 3)
    lines = rasterise(WeakLabels(scribbles=labels.scribbles), SIZE, 1.5)
    boxes = box_labels(labels.boxes, SIZE, activation_in_box(maps), 0.5)
    expected = np.where(spots != VOID, spots, np.where(lines != VOID, lines, boxes))
    found = Partial(maps="maps").label_map(labels, SIZE, maps)
    assert np.array_equal(found, expected)
    assert {0, 1, 2, UNLABELLED} == set(np.unique(found).tolist())


def test_tags_fill_in_where_there_are_no_boxes() -> None:
    labels = WeakLabels(frozenset({1}), points=(Point(2, 3, 3),))
    maps = some_maps()
    spots = rasterise(WeakLabels(points=labels.points), SIZE, 3)
    found = Partial(maps="maps").label_map(labels, SIZE, maps)
    assert np.array_equal(found, np.where(spots != VOID, spots, tag_labels(maps, {1}, 6, 0.2)))
    only = Partial(maps="maps", kinds=("points",)).label_map(labels, SIZE, maps)
    assert np.array_equal(only, np.where(spots != VOID, spots, UNLABELLED))


def test_without_maps_tags_say_nothing_unless_there_is_no_object() -> None:
    for tags, expected in ((None, UNLABELLED), (frozenset({1}), UNLABELLED), (frozenset(), 0)):
        assert (Partial().label_map(WeakLabels(tags), SIZE, None) == expected).all()


@pytest.mark.parametrize(("width", "pixels"), [(0, 1), (1, 1), (3, 9), (6, 29)])
def test_a_point_is_as_wide_as_it_is_told(width: float, pixels: int) -> None:
    found = Partial(point_width=width).label_map(WeakLabels(points=(Point(1, 6, 6),)), SIZE, None)
    assert (found == 1).sum() == pixels


def write_labels(root: Path) -> Path:
    """The tiny data with tags, boxes or points of an image, in turn, and a scribble."""
    write_tiny_voc(root)
    tags: dict[str, Any] = read_json(root / "tags.json")
    marks: dict[str, dict[str, Any]] = {"points.json": {}, "boxes.json": {}, "scribbles.json": {}}
    for number, (name, (of_image,)) in enumerate(sorted(tags.copy().items())):
        rows, columns = np.nonzero(read_label_map(root / "SegmentationClass" / f"{name}.png"))
        x, y = int(columns.mean()), int(rows.mean())
        box = [int(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        if number % 3 == 1:
            marks["boxes.json"][name] = {"boxes": [{"class": of_image, "box": box}]}
        if number % 3 == 2:
            points = [{"class": of_image, "point": [x, y]}, {"class": "background", "point": [0, 0]}]
            marks["points.json"][name] = {"points": points}
        if number % 3:
            del tags[name]
        if number == 5:
            marks["scribbles.json"][name] = {"scribbles": [{"class": of_image, "points": [[x, y], [x + 3, y]]}]}
    write_json(root / "tags.json", tags)
    for name, images in marks.items():
        write_json(root / name, {"images": images})
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(write_labels(tmp_path / "data"))


def test_mixed_labels_go_through_the_command_line_to_scores(dataset: Dataset, tmp_path: Path) -> None:
    changes = set_options(*SHORT, "runtime.device=cpu")
    done = process("run", "partial", "--data", dataset.root, "--out", tmp_path / "run", *changes)
    assert done.returncode == 0, done.stderr
    kinds = {
        kind for s in dataset.split("train") for kind in ("boxes", "points", "scribbles") if getattr(s.labels, kind)
    }
    assert kinds == {"boxes", "points", "scribbles"}
    for sample in dataset.split("train"):
        labels = Partial.array_of(tmp_path / "run" / "partial", sample)
        assert labels.shape == read_image(sample.image).shape[:2]
        assert set(np.unique(labels).tolist()) <= {0, 1, 2, UNLABELLED}
        for point in sample.labels.points:
            assert labels[point.y, point.x] == point.label
    rows = json.loads((tmp_path / "run" / "scores" / "summary.json").read_text())
    assert {row["split"] for row in rows} == {"score", "val"}
    assert "unlabelled" in (tmp_path / "run" / "report.html").read_text()


def test_killed_and_shared_by_two_processes_it_makes_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    alone = (*ALONE, "partial.boxes=fill")
    run(load_recipe("partial", alone), dataset, tmp_path / "whole")
    command = ("run", "partial", "--data", dataset.root, "--out", tmp_path / "cut", *set_options(*alone))
    done = process(*command, program=killed_at("partial/partial/", "3"))
    assert done.returncode == 0, done.stderr
    made = list((tmp_path / "cut" / "partial" / "partial").glob("[!.]*.png"))
    assert 0 < len(made) < len(dataset.split("train"))
    done = in_two_processes(*command)
    assert done.returncode == 0, done.stderr
    cut, whole = artifacts(tmp_path / "cut"), artifacts(tmp_path / "whole")
    pngs = {name for name in whole if name.endswith(".png")}
    assert len(pngs) == len(dataset.split("train"))
    assert {name: cut[name] for name in pngs} == {name: whole[name] for name in pngs}


def test_a_segmenter_sees_void_where_it_does_not_tell_unlabelled_pixels_apart(dataset: Dataset, tmp_path: Path) -> None:
    run(load_recipe("partial", [*ALONE, "partial.boxes=fill"]), dataset, tmp_path / "run")
    folder = tmp_path / "run" / "partial"
    sample = next(sample for sample in dataset.split("train") if sample.labels.points)
    whole = ReadLabels(Partial, folder, partial=True)(sample)["labels"]
    plain = ReadLabels(Partial, folder, partial=False)(sample)["labels"]
    assert np.array_equal(plain, np.where(whole == UNLABELLED, VOID, whole))
    assert (whole == UNLABELLED).any()
    # In masks of a data set with 254 classes it is one of them.
    masks = folder.with_name("masks")
    (masks / "masks").mkdir(parents=True)
    partial_path(folder, sample).rename(masks / "masks" / f"{sample.name}.png")
    assert np.array_equal(ReadLabels(Masks, masks, partial=False)(sample)["labels"], whole)


def test_boxes_without_maps_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match="boxes=fill"):
        run(load_recipe("partial", ALONE), dataset, tmp_path / "run")
    run(load_recipe("partial", [*ALONE, "partial.kinds=[points, scribbles]"]), dataset, tmp_path / "run")


def test_tags_alone_without_maps_are_refused(tmp_path: Path) -> None:
    dataset = open_dataset(write_tiny_voc(tmp_path / "data"))
    with pytest.raises(WeaksegError, match="set maps"):
        run(load_recipe("partial", ALONE), dataset, tmp_path / "run")


def test_more_than_253_classes_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    names = [*CLASSES, *(f"class {number}" for number in range(252))]
    many = replace(dataset, classes=Classes(names))
    with pytest.raises(WeaksegError, match=r"254 classes.*253"):
        run(load_recipe("partial", [*ALONE, "partial.boxes=fill"]), many, tmp_path / "run")
