"""`weakseg evaluate`: masks of anyone against the ground truth of a data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weakseg.data.images import read_label_map, write_label_map


@pytest.fixture
def masks(tiny_voc: Path, tmp_path: Path) -> Path:
    """The ground truth itself, as if predicted."""
    return Path(shutil.copytree(tiny_voc / "SegmentationClass", tmp_path / "masks"))


def test_the_truth_is_perfect(weakseg: Any, tiny_voc: Path, masks: Path, tmp_path: Path) -> None:
    answer = weakseg("evaluate", masks, "--data", tiny_voc, "--out", tmp_path / "scores")
    assert answer.status == 0, answer.err
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["mean_iou"] == pytest.approx(1)
    assert (scores["images"], scores["split"]) == (4, "val")
    assert scores["classes"] == ["background", "kettle", "spoon"]
    assert [line.split() for line in answer.out.splitlines() if "spoon" in line] == [["spoon", "100.0", "100.0"]]
    assert "8 files belong to no image of the split" in answer.out
    names = {path.name for path in (tmp_path / "scores").iterdir()}
    assert names == {"scores.json", "images.csv", "confusion.png", "per_class.png"}


def test_a_spoilt_mask_costs_what_it_must(weakseg: Any, tiny_voc: Path, masks: Path, tmp_path: Path) -> None:
    truth = [read_label_map(masks / f"val {number}.png") for number in range(4)]
    write_label_map(masks / "val 1.png", np.zeros_like(truth[1]))
    answer = weakseg("evaluate", masks, "--data", tiny_voc, "--out", tmp_path / "scores")
    assert answer.status == 0, answer.err
    spoons = [(mask == 2).sum() for mask in truth]
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())["iou"]
    assert found[2] == pytest.approx(spoons[3] / (spoons[1] + spoons[3]))
    assert found[1] == pytest.approx(1)
    assert (tmp_path / "scores" / "images.csv").read_text().splitlines()[1].startswith("val 1,")


def test_ground_truth_of_0_and_255_is_noted(weakseg: Any, tiny_voc: Path, masks: Path, tmp_path: Path) -> None:
    for path in (tiny_voc / "SegmentationClass").glob("val *.png"):
        truth = read_label_map(path)
        write_label_map(path, np.where(truth == 0, np.uint8(0), np.uint8(255)))
        write_label_map(masks / path.name, np.zeros_like(truth))
    answer = weakseg("evaluate", masks, "--data", tiny_voc, "--out", tmp_path / "scores")
    assert answer.status == 0, answer.err
    assert "ground truth shows no class" in answer.out
    assert "255" in answer.out


def test_a_run_s_predictions_have_the_run_s_score(weakseg: Any, finished: Any, tmp_path: Path) -> None:
    folder = finished.run / "scores" / "predictions" / "segment"
    answer = weakseg("evaluate", folder, "--data", finished.data, "--split", "val", "--out", tmp_path / "scores")
    assert answer.status == 0, answer.err
    rows = json.loads((finished.run / "scores" / "scores.json").read_text())["rows"]
    (row,) = [row for row in rows if (row["title"], row["split"]) == ("DeepLab", "val")]
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert (found["matrix"], found["mean_iou"]) == (row["matrix"], row["mean_iou"])


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda data, masks: (masks / "val 2.png").unlink(), [], "has no label map for 1 of 4 images of the split"),
        (lambda data, masks: shutil.rmtree(masks), [], "masks is not a folder of label maps."),
        (lambda data, masks: None, ["--split", "tst"], 'has no split "tst". It has: train (8 images), val (4 images)'),
        (
            lambda data, masks: None,
            ["--format", "vok"],
            'Unknown data set format "vok". Known are voc, coco, densepose, folder.',
        ),
        (
            lambda data, masks: (data / "SegmentationClass" / "val 0.png").unlink(),
            [],
            '1 of 4 images of the split "val" have no ground truth to compare with, the first is val 0.',
        ),
        (
            lambda data, masks: write_label_map(masks / "val 3.png", np.zeros((3, 3), np.uint8)),
            [],
            "val 3",
        ),
        (lambda data, masks: (masks / "val 1.png").write_text("x"), [], "val 1.png is not a readable PNG file."),
    ],
    ids=["a mask is missing", "no folder", "no split", "no format", "no truth", "other size", "no picture"],
)
def test_what_cannot_be_compared(
    weakseg: Any, tiny_voc: Path, masks: Path, tmp_path: Path, spoil: Any, options: list[str], message: str
) -> None:
    spoil(tiny_voc, masks)
    answer = weakseg("evaluate", masks, "--data", tiny_voc, "--out", tmp_path / "scores", *options)
    assert answer.status == 1
    assert answer.err.count("Error: ") == 1
    assert message in answer.err
    assert not (tmp_path / "scores").exists()
