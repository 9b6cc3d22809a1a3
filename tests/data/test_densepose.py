"""DensePose: the layout, its points, left and right in mirrored views, scores by instances."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakseg.data.densepose import PARTS
from weakseg.data.findings import Report
from weakseg.data.opening import open_dataset
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.labels import Classes, Point
from weakseg.ops.fields import LABELS, TAGS
from weakseg.report.evaluation import evaluate_folder

SIZE = (20, 24)


def write_png(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


@pytest.fixture
def densepose(tmp_path: Path) -> Path:
    root, rng = tmp_path / "densepose", np.random.default_rng(0)
    for split in ("train2014", "minival2014"):
        for number in range(2):
            name = f"{split}/person{number}"
            truth = np.zeros(SIZE)
            truth[5:15, 4:12], truth[5:15, 12:20] = 2, 3  # right hand, left hand
            points = np.full(SIZE, 254)
            points[8:11, 6:9], points[8:11, 14:17] = 2, 3
            write_png(root / "images" / f"{name}.png", rng.integers(0, 256, (*SIZE, 3)))
            write_png(root / "segcls" / f"{name}.png", truth)
            write_png(root / "points" / f"{name}.png", points)
            write_png(root / "inst" / f"{name}.png", truth > 0)
    return root


def test_the_layout_is_recognised(densepose: Path) -> None:
    dataset = open_dataset(densepose)
    assert dataset.format == "densepose"
    assert dataset.classes.names == PARTS
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train2014": 2, "minival2014": 2}
    sample = dataset.split("train2014")[0]
    assert sample.labels.points == (Point(2, 7, 9), Point(3, 15, 9))
    assert sample.mask is not None
    assert set(np.unique(sample.mask.read())) == {0, 2, 3}


def test_left_and_right_classes_know_each_other() -> None:
    # spml.md, section 4: 2 ↔ 3, 4 ↔ 5, 6 ↔ 7, 8 ↔ 9, 10 ↔ 11, 12 ↔ 13
    assert Classes(PARTS).mirrored() == [0, 1, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 14]
    assert Classes(["left lane", "car"]).mirrored() == [0, 1, 2]


def test_a_mirrored_view_exchanges_left_and_right() -> None:
    labels, classes = np.zeros((8, 8), np.uint8), Classes(PARTS)
    labels[:, :2], labels[:, 6:], labels[0] = 2, 9, 254
    tags = np.zeros(len(PARTS), np.float32)
    tags[[1, 8]] = 1  # right hand, left leg
    arrays = {"image": np.zeros((8, 8, 3), np.uint8), "labels": labels, "tags": tags}
    augment, seen = Augmentation(crop=8), set()
    for seed in range(20):
        view = augment(arrays, {"labels": LABELS, "tags": TAGS}, np.random.default_rng(seed), classes.mirrored())
        mirrored = view["labels"][4, 7] != 9
        seen.add(mirrored)
        assert (view["labels"][0] == 254).all()
        assert view["labels"][4].tolist() == ([8, 8, 0, 0, 0, 0, 3, 3] if mirrored else labels[4].tolist())
        assert np.flatnonzero(view["tags"]).tolist() == ([2, 7] if mirrored else [1, 8])
    assert seen == {True, False}


def test_evaluation_counts_instances(densepose: Path, tmp_path: Path) -> None:
    text = evaluate_folder(densepose / "segcls", open_dataset(densepose), "minival2014", tmp_path / "out")
    assert "instances" in text
    weighted = json.loads((tmp_path / "out" / "scores.json").read_text())["instance_weighted"]
    assert weighted["images"] == 2
    # Both instances of each image are of the classes that fill most of them: the background and a hand.
    assert [label for label, iou in enumerate(weighted["iou"]) if iou > 0] == [0, 2]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: write_png(root / "points/train2014/person0.png", np.zeros((3, 3))), "3×3"),
        (lambda root: write_png(root / "segcls/train2014/nobody.png", np.zeros(SIZE)), "no image of this name"),
        (lambda root: write_png(root / "images/stray.png", np.zeros((*SIZE, 3))), "folder of a split"),
        (lambda root: (root / "points/train2014/person0.png").write_bytes(b"no png"), "person0"),
    ],
)
def test_what_does_not_fit_is_named(densepose: Path, break_it: Callable[[Path], object], message: str) -> None:
    break_it(densepose)
    with pytest.raises(WeaksegError, match=message):
        open_dataset(densepose)
    report = Report()
    open_dataset(densepose, report=report)
    assert report.problems
