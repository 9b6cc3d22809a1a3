"""Labels in points.json, scribbles.json and boxes.json beside a data set: joined to what is known, in any layout."""

from __future__ import annotations

from pathlib import Path

from tiny import write_tiny_voc
from weakseg.data.findings import Report
from weakseg.data.opening import open_dataset
from weakseg.files import write_json
from weakseg.labels import Box, Point

BOX = {"class": "spoon", "box": [1, 2, 5, 6]}
CLICK = {"class": "background", "point": [0, 3]}


def test_voc_joins_them_to_its_tags(tmp_path: Path) -> None:
    root = write_tiny_voc(tmp_path)
    write_json(root / "points.json", {"images": {"train 0": {"points": [CLICK]}, "val 1": {"points": [CLICK]}}})
    write_json(root / "boxes.json", {"images": {"train 0.png": {"boxes": [{**BOX, "class": "kettle"}]}}})
    dataset = open_dataset(root)
    labels = dataset.split("train")[0].labels
    assert (labels.tags, labels.points, labels.boxes) == ({1}, (Point(0, 0, 3),), (Box(1, 1, 2, 5, 6),))
    assert not dataset.split("train")[1].labels.points
    assert dataset.split("val")[1].labels.points == (Point(0, 0, 3),)


def test_a_folder_keeps_its_splits(tmp_path: Path) -> None:
    voc = write_tiny_voc(tmp_path / "voc")
    (voc / "JPEGImages").rename(tmp_path / "images")
    (tmp_path / "labels.csv").write_text("image,tags,split\ntrain 0,spoon,train\nval 0,kettle,val\n")
    images = {"val 0": {"points": [CLICK], "split": "train"}, "val 1": {"boxes": [BOX]}}
    write_json(tmp_path / "points.json", {"images": images})
    dataset = open_dataset(tmp_path, "folder")
    assert dataset.classes.names == ("kettle", "spoon")
    (val,) = dataset.split("val")
    assert (val.labels.tags, val.labels.points) == ({1}, (Point(0, 0, 3),))
    boxed = {sample.name: sample.labels for sample in dataset.split("train")}["val 1"]
    assert (boxed.tags, boxed.boxes) == (None, (Box(2, 1, 2, 5, 6),))


def test_voc_says_that_a_label_file_of_a_folder_is_not_read(tmp_path: Path) -> None:
    root = write_tiny_voc(tmp_path)
    write_json(root / "labels.json", {"images": {"train 0": {"boxes": [BOX]}}})
    (note,) = open_dataset(root).notes
    assert str(root / "labels.json") in note
    assert "boxes.json" in note


def test_unknown_keys_are_told_with_those_of_such_a_file(tmp_path: Path) -> None:
    root = write_tiny_voc(tmp_path)
    write_json(root / "boxes.json", {"images": {"train 0": {"boxs": [BOX]}, "train 1": {"boxes": [{**BOX, "id": 1}]}}})
    report = Report()
    open_dataset(root, report=report)
    file = root / "boxes.json"
    assert report.problems == [
        f'{file}, image "train 0", boxs: unknown key. Did you mean "boxes"? Known: boxes, points, scribbles.',
        f'{file}, image "train 1", boxes[0].id: unknown key. Known: class, box.',
    ]
