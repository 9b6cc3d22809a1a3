from __future__ import annotations

from pathlib import Path

import pytest

from weakseg.data.findings import Report
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError


@pytest.mark.parametrize("format", ["voc", "coco", "folder"])
def test_each_layout_is_recognised(format: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(format)
    for dataset in (open_dataset(root), open_dataset(str(root)), open_dataset(root, format)):
        assert dataset.format == format
        assert dataset.root == root
        assert len(dataset.split("train")) > 0


def test_an_annotation_file_is_recognised(coco: Path) -> None:
    assert list(open_dataset(coco / "annotations" / "instances_val2014.json").splits) == ["val"]


def test_coco_with_an_images_folder_is_coco(coco: Path) -> None:
    (coco / "images").mkdir()
    for split in ("train2014", "val2014"):
        (coco / split).rename(coco / "images" / split)
    assert open_dataset(coco).format == "coco"


def test_an_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError) as caught:
        open_dataset(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path} is no data set that weakseg knows. Looked for:"
    assert [line.split(":")[0] for line in lines[1:]] == ["- voc", "- coco", "- densepose", "- folder"]
    assert "labels.csv" in lines[4]


def test_a_data_set_further_inside_is_pointed_out(voc: Path, tmp_path: Path) -> None:
    inside = tmp_path / "outer" / "VOCdevkit" / "VOC2012"
    inside.parent.mkdir(parents=True)
    voc.rename(inside)
    with pytest.raises(WeaksegError, match=f"There is one inside: {inside}"):
        open_dataset(tmp_path / "outer")


def test_unknown_formats_and_paths_are_errors(tmp_path: Path, voc: Path) -> None:
    with pytest.raises(WeaksegError, match=r'Unknown data set format "yolo"\. Known are voc, coco, densepose, folder'):
        open_dataset(voc, "yolo")
    with pytest.raises(WeaksegError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(WeaksegError, match=r"has no annotations/instances_\*\.json"):
        open_dataset(voc, "coco")


def test_problems_are_raised_or_reported(voc: Path) -> None:
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("c\nz\n")
    with pytest.raises(WeaksegError, match=r'val\.txt, line 2, "z": there is no such image'):
        open_dataset(voc)
    report = Report()
    assert [s.name for s in open_dataset(voc, report=report).split("val")] == ["c"]
    assert len(report.problems) == 1


def test_what_is_worth_knowing_stays_with_the_data_set(voc: Path) -> None:
    (voc / "SegmentationClass" / "b.jpg").touch()
    [note] = open_dataset(voc).notes
    assert note.startswith(f"{voc / 'SegmentationClass' / 'b.jpg'}: the file is not read")


def test_the_only_split_there_is_is_the_one_to_train_on(voc: Path) -> None:
    lists = voc / "ImageSets" / "Segmentation"
    for name in ("val", "train_aug"):
        (lists / f"{name}.txt").unlink()
    (lists / "train.txt").rename(lists / "default.txt")
    assert [s.name for s in open_dataset(voc).split("train")] == ["a", "b"]
    with pytest.raises(WeaksegError, match='no split "val"'):
        open_dataset(voc).split("val")
    (lists / "other.txt").write_text("c\n")
    with pytest.raises(WeaksegError, match=r'no split "train".*default \(2 images\), other'):
        open_dataset(voc).split("train")
