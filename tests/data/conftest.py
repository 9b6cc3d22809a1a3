"""Tiny data sets of every layout, made anew for each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Save = Callable[..., Path]


@pytest.fixture
def save_image() -> Save:
    """Writes a photograph-like picture; the mode and Pillow's saving options can be given."""

    def save(path: Path, size: tuple[int, int] = (6, 8), mode: str = "RGB", **options: object) -> Path:
        height, width = size
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path, **options)
        return path

    return save


@pytest.fixture
def save_mask() -> Save:
    """Writes values as a palette PNG (a palette by default, greyscale with mode "L")."""

    def save(path: Path, values: object, mode: str = "P") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.asarray(values, np.uint8)
        image = Image.frombytes(mode, (array.shape[1], array.shape[0]), array.tobytes())
        if mode == "P":
            image.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
        image.save(path)
        return path

    return save


@pytest.fixture
def voc(tmp_path: Path, save_image: Save, save_mask: Save) -> Path:
    """Four images: a and b in train, c in val, d only in train_aug; masks for a, c (official) and a, d (SBD)."""
    root = tmp_path / "voc"
    for name in "abcd":
        save_image(root / "JPEGImages" / f"{name}.jpg")
    values = np.zeros((6, 8), np.uint8)
    values[1:4, 2:5] = 8
    values[0] = 255
    for name in "ac":
        save_mask(root / "SegmentationClass" / f"{name}.png", values)
    values[values == 8] = 12
    for name in "ad":
        save_mask(root / "SegmentationClassAug" / f"{name}.png", values)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "train_aug.txt").write_text("a\nb\nd\n")
    return root


def coco_content(split: str) -> dict[str, list[dict[str, object]]]:
    """One image of 6 × 8 pixels with a cat (id 17) under a person (id 1), and one image of nothing."""
    return {
        "images": [
            {"id": 7, "file_name": f"{split}_7.jpg", "height": 6, "width": 8},
            {"id": 9, "file_name": f"{split}_9.jpg", "height": 6, "width": 8},
        ],
        "annotations": [
            {
                "id": 70,
                "image_id": 7,
                "category_id": 17,
                "iscrowd": 0,
                "bbox": [1, 1, 6, 4],
                "segmentation": [[1, 1, 7, 1, 7, 5, 1, 5]],
            },
            {
                "id": 71,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [2.5, 2.25, 2.0, 1.5],
                "segmentation": [[2, 2, 5, 2, 5, 4, 2, 4]],
            },
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
    }


@pytest.fixture
def coco(tmp_path: Path, save_image: Save) -> Path:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train2014", "val2014"):
        content = coco_content(split)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            save_image(root / split / str(image["file_name"]))
    return root


@pytest.fixture
def folder(tmp_path: Path, save_image: Save) -> Path:
    """Three images, one of them deeper and with a space in its name, and a table of their tags."""
    root = tmp_path / "folder"
    save_image(root / "images" / "one.jpg")
    save_image(root / "images" / "deep" / "two three.PNG")
    save_image(root / "images" / "four.webp", (5, 5))
    (root / "labels.csv").write_text("image,tags,split\none.jpg,cat;dog,\ndeep/two three.PNG,dog | cat,val\nfour,,\n")
    return root
