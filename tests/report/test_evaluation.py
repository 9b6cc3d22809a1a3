"""Measuring a folder of label maps, against counts made by hand."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import IndexMask, read_image, read_label_map, write_label_map
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.labels import Classes
from weakseg.report.evaluation import evaluate_folder

NAMES = ("one", "folder/zwei drei", "ünï")
LABELS = {0: 0, 1: 1, 2: 2, 255: 255}


def truth_of(number: int) -> np.ndarray:
    truth = np.zeros((10, 12), np.uint8)
    truth[:, 6:] = number + 1 if number < 2 else 255
    return truth


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = []
    for number, name in enumerate(NAMES):
        path = tmp_path / "truth" / f"{number}.png"
        write_label_map(path, truth_of(number))
        samples.append(Sample(name, tmp_path / "unused.jpg", mask=IndexMask(path, LABELS)))
    untrue = [Sample("x", tmp_path / "unused.jpg"), samples[0]]
    return Dataset(tmp_path, "voc", Classes(["cat", "dog"]), {"val": samples, "untrue": untrue, "empty": []})


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Perfect label maps. One file has its name decomposed, as a Mac writes it."""
    folder = tmp_path / "masks"
    for number, name in enumerate(NAMES):
        write_label_map(folder / f"{unicodedata.normalize('NFD', name)}.png", truth_of(number))
    return folder


def rows_of(text: str) -> dict[str, list[str]]:
    """Row → cells of the tables in the text."""
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {name: values for name, *values in filter(None, cells)}


def test_perfect_masks_score_100(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    rows = rows_of(evaluate_folder(masks, dataset, "val", tmp_path / "out"))
    assert rows["background"] == rows["cat"] == rows["dog"] == ["100.0", "100.0"]
    assert rows["mean of all 3 classes (absent: 0)"] == ["100.0"]
    assert rows["mean of the 3 classes that occur"] == ["100.0"]
    assert rows["pixel accuracy"] == rows["mean boundary F"] == ["100.0"]
    assert "3 images" in rows


def test_scores_are_those_counted_by_hand(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    half = truth_of(0)
    half[:5, 6:] = 0  # half of the cat is missed
    write_label_map(masks / "one.png", half)
    write_label_map(masks / "folder" / "zwei drei.png", np.where(truth_of(1) == 2, 255, 0).astype(np.uint8))
    text = evaluate_folder(masks, dataset, "val", tmp_path / "out")
    rows = rows_of(text)
    # 60 + 60 + 60 background pixels, 30 more where the cat was missed; no dog is found.
    assert rows["background"][0] == f"{100 * 180 / 210:.1f}"
    assert rows["cat"][0] == "50.0"
    assert rows["dog"][0] == "0.0"
    assert rows["pixel accuracy"] == [f"{100 * 210 / 300:.1f}"]
    assert "20.0 % of the pixels are void or of no known class in the masks; they count as wrong." in text
    with (tmp_path / "out" / "images.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    first, second, third = [60 / 60, 0], [60 / 90, 0.5], [1]
    assert table == [
        ["image", "iou_percent"],
        ["folder/zwei drei", f"{100 * np.mean(first):.2f}"],
        ["one", f"{100 * np.mean(second):.2f}"],
        ["ünï", f"{100 * np.mean(third):.2f}"],
    ]


@pytest.mark.parametrize("side", ["truth", "masks"])
def test_masks_in_black_and_white_are_noticed(dataset: Dataset, masks: Path, tmp_path: Path, side: str) -> None:
    for path in sorted((tmp_path / side).rglob("*.png")):
        with_class = read_label_map(path)
        write_label_map(path, np.where(with_class == 0, np.uint8(0), np.uint8(255)))
    text = evaluate_folder(masks, dataset, "val", tmp_path / "out")
    assert "255 is the foreground" in text


def test_classes_that_do_not_occur_count_by_one_rule_only(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    one = Dataset(dataset.root, "voc", dataset.classes, {"val": dataset.split("val")[:1]})
    rows = rows_of(evaluate_folder(masks, one, "val", tmp_path / "out"))
    assert rows["dog"] == ["–", "–"]
    assert rows["mean of all 3 classes (absent: 0)"] == ["66.7"]
    assert rows["mean of the 2 classes that occur"] == ["100.0"]


def test_everything_is_written(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_folder(masks, dataset, "val", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png",
        "images.csv",
        "per_class.png",
        "scores.json",
    ]
    scores = read_json(out / "scores.json")
    assert scores["classes"] == ["background", "cat", "dog"]
    assert scores["split"] == "val"
    assert scores["image_iou"] == {"folder/zwei drei": 1.0, "one": 1.0, "ünï": 1.0}
    assert np.trace(np.array(scores["matrix"])) == scores["pixels"] == 300
    assert min(read_image(out / "confusion.png").shape[:2]) > 200


def test_files_of_no_image_are_mentioned(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    write_label_map(masks / "folder" / "other.png", truth_of(0))
    text = evaluate_folder(masks, dataset, "val", tmp_path / "out")
    assert "1 files belong to no image of the split and were left out, such as folder/other.png." in text
    assert rows_of(text)["cat"] == ["100.0", "100.0"]


def test_missing_masks_are_counted_and_nothing_is_written(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    (masks / "folder" / "zwei drei.png").unlink()
    (masks / "one.png").unlink()
    with pytest.raises(WeaksegError, match=r"no label map for 2 of 3 images .* the first is one\.png"):
        evaluate_folder(masks, dataset, "val", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("untrue", r'1 of 2 images of the split "untrue" have no ground truth .* the first is x\.'),
        ("empty", r'The split "empty" has no images'),
        ("test", r'has no split "test". It has: val \(3 images\)'),
    ],
)
def test_splits_without_ground_truth_are_refused(
    dataset: Dataset, masks: Path, tmp_path: Path, split: str, message: str
) -> None:
    with pytest.raises(WeaksegError, match=message):
        evaluate_folder(masks, dataset, split, tmp_path / "out")


def test_a_missing_folder_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match="nowhere is not a folder of label maps"):
        evaluate_folder(tmp_path / "nowhere", dataset, "val", tmp_path / "out")


def test_a_mask_of_another_size_is_refused(dataset: Dataset, masks: Path, tmp_path: Path) -> None:
    write_label_map(masks / "one.png", np.zeros((5, 6), np.uint8))
    with pytest.raises(WeaksegError, match=r"one: the size of the prediction is 6 × 5, .* 12 × 10"):
        evaluate_folder(masks, dataset, "val", tmp_path / "out")
    assert not (tmp_path / "out").exists()
