"""More classes than 8-bit masks hold, from an annotation file in the form of LVIS to predicted masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Command
from tiny import TINY, set_options
from weakseg.data.images import write_label_map
from weakseg.data.opening import open_dataset
from weakseg.files import read_json, write_json

CLASSES = 300
SHOWN = (3, 254, 255, 256, 299, 300)
"""The numbers of the classes that images show, those among them whose numbers mean something else in 8-bit masks."""


def write_split(root: Path, split: str, count: int) -> None:
    images, annotations = [], []
    (root / split).mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(90, 150, (40, 48, 3))
        for place in (0, 1):
            category, left = SHOWN[(number + place) % len(SHOWN)], 4 + 24 * place
            pixels[8:32, left : left + 16] = (category * np.array([37, 91, 13])) % 255
            box = [left, 8, left + 16, 8, left + 16, 32, left, 32]
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": category, "bbox": [left, 8, 16, 24]}
                | {"segmentation": [box], "area": 384}
            )
        file = f"{split} {number:012}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(root / split / file)
        address = f"http://images.example/{split}/{file}"
        images.append({"id": number, "coco_url": address, "height": 40, "width": 48})
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, CLASSES + 1)]
    parts = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"instances_{split}.json", parts)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    write_split(root, "train2017", 12)
    write_split(root, "val2017", 6)
    return root


def values_of(path: Path) -> set[int]:
    """The values in a file of 16 bits."""
    with Image.open(path) as picture:
        assert picture.mode == "I;16"
        return set(np.unique(np.array(picture)).tolist())


def test_masks_of_many_classes_from_tags_to_predictions(data: Path, tmp_path: Path, weakseg: Command) -> None:
    run, out, scores = tmp_path / "run", tmp_path / "out", tmp_path / "scores"
    assert weakseg("run", "toy-cam", "--data", data, "--out", run, *set_options(*TINY)).status == 0
    dataset = open_dataset(data)
    seen = set()
    for sample in dataset.split("train"):
        values = values_of(run / "masks" / "masks" / f"{sample.name}.png")
        assert values <= {0, *(dataset.classes.labels.index(label) + 1 for label in sample.labels.present())}
        seen |= values
    assert seen & {254, 255, 256}
    rows = read_json(run / "scores" / "scores.json")["rows"]
    assert all(len(row["iou"]) == 1 + CLASSES for row in rows)

    assert weakseg("predict", run / "segment" / "model", data / "val2017", "--out", out, "--table").status == 0
    predicted = set().union(*(values_of(path) for path in (out / "masks").glob("*.png")))
    assert predicted <= set(range(CLASSES + 1))
    numbers = read_json(out / "classes.json")
    assert numbers["thing 255"] == 255
    assert numbers["void"] == 65535
    assert weakseg("evaluate", out / "masks", "--data", data, "--split", "val", "--out", scores).status == 0


def test_the_ground_truth_as_prediction_is_right_everywhere(data: Path, tmp_path: Path, weakseg: Command) -> None:
    for sample in open_dataset(data).split("val"):
        assert sample.mask is not None
        write_label_map(tmp_path / "masks" / f"{sample.name}.png", sample.mask.read(), deep=True)
    found = weakseg("evaluate", tmp_path / "masks", "--data", data, "--split", "val", "--out", tmp_path / "scores")
    assert found.status == 0
    scores = read_json(tmp_path / "scores" / "scores.json")
    assert [name for name, iou in zip(scores["classes"], scores["iou"], strict=True) if iou is not None] == [
        "background",
        *(f"thing {number}" for number in SHOWN),
    ]
    assert scores["mean_iou_present"] == scores["boundary"]["mean_f_score"] == 1


def test_a_network_of_many_classes_learns_them(data: Path, tmp_path: Path, weakseg: Command) -> None:
    """With masks, from which a class beyond 255 is known again: its output is not shifted."""
    short = ("segment.train={epochs: 40, batch_size: 6, lr: 0.05, min_steps: null}", "segment.augment={crop: 40}")
    changes = set_options(*short, "runtime.device=cpu")
    assert weakseg("run", "toy-supervised", "--data", data, "--out", tmp_path, *changes).status == 0
    (row,) = (r for r in read_json(tmp_path / "scores" / "scores.json")["rows"] if r["split"] == "val")
    assert np.mean([row["iou"][number] or 0 for number in SHOWN]) > 0.3
