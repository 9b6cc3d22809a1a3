"""`weakseg data check`: every problem of a spoilt data set at once, by name; and what is noted only."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from weakseg.data.images import write_label_map


def photograph(size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def giant_png(side: int) -> bytes:
    """Only the header of a picture; the pixels would fill a gigabyte."""

    def chunk(kind: bytes, data: bytes = b"") -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT") + chunk(b"IEND")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six sound images with tags, two of them with masks, in two splits."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rows = ["image,tags,split"]
    for number in range(6):
        photograph().save(root / "images" / f"{number}.jpg", quality=95)
        rows.append(f"{number},{'cat;dog' if number else 'cat'},{'val' if number > 3 else 'train'}")
    for name in ("4", "5"):
        write_label_map(root / "masks" / f"{name}.png", np.resize(np.arange(1, 3, dtype=np.uint8), (20, 24)))
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_a_sound_data_set(weakseg: Any, folder: Path) -> None:
    answer = weakseg("data", "check", folder)
    assert (answer.status, answer.out.splitlines()) == (
        0,
        [
            "train: 4 images with tags (4)",
            "val: 2 images with tags (2), masks (2)",
            "2 classes, with labelled images: cat 6, dog 5",
            f"{folder}: 0 problems, 0 notes",
        ],
    )
    assert "checking: 6/6 images" in answer.err


def test_every_problem_at_once(weakseg: Any, folder: Path) -> None:
    images = folder / "images"
    (images / "0.jpg").write_text("no picture")
    (images / "1.jpg").write_bytes((images / "1.jpg").read_bytes()[:-200])
    (images / "2.jpg").unlink()
    (images / "2.png").write_bytes(giant_png(20_000))
    write_label_map(folder / "masks" / "4.png", np.ones((20, 25), np.uint8))
    write_label_map(folder / "masks" / "5.png", np.full((20, 24), 7, np.uint8))
    (folder / "classes.txt").write_text("cat\nbird\n")
    answer = weakseg("data", "check", folder)
    assert answer.status == 1
    problems = [line for line in answer.out.splitlines() if line.startswith("problem: ")]
    for expected in (
        f"problem: {images / '0.jpg'} is not a readable JPEG / PNG / ",
        f"problem: {images / '1.jpg'} cannot be decoded: ",
        f"problem: {images / '2.png'} has more than 128 megapixels. Scale it down or remove it.",
        f"problem: {images / '4.jpg'} has 20 × 24 pixels (height × width), but its mask 20 × 25.",
        f"problem: {folder / 'masks' / '5.png'} holds values that are no class: 7 (480 pixels).",
    ):
        assert any(line.startswith(expected) for line in problems), expected
    assert any('Unknown class "dog"' in line and "labels.csv, line 3" in line for line in problems)
    assert f"{folder}: {len(problems)} problems, " in answer.out.splitlines()[-1]


def test_a_context_mask_of_another_size(weakseg: Any, tiny_voc: Path) -> None:
    write_label_map(tiny_voc / "ContextMask" / "train 3.png", np.zeros((9, 7), np.uint8))
    answer = weakseg("data", "check", tiny_voc)
    assert answer.status == 1
    assert "train 3.png has 40 × 48 pixels (height × width), but its context mask 9 × 7." in answer.out


def test_the_summary_tells_which_classes_are_seen_together(weakseg: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "together.json"
    answer = weakseg("data", "summary", folder, "--out", out)
    assert answer.status == 0
    lines = [line.split() for line in answer.out.splitlines()]
    assert ["train", "4", "4", "0"] in lines
    assert ["val", "2", "2", "2"] in lines
    assert lines[-2:] == [["cat", "dog", "75", "%", "4"], ["dog", "cat", "100", "%", "3"]]
    values = json.loads(out.read_text())
    assert values["classes"] == ["cat", "dog"]
    assert values["images_with_both"] == [[4, 3], [3, 3]]
    assert values["share_with_other"] == [[1, 0.75], [1, 1]]
    assert values["splits"]["val"] == {"images": 2, "with_weak_labels": 2, "with_masks": 2}


def test_a_summary_of_classes_without_images(weakseg: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "classes.txt").write_text("cat\nunicorn\ndog\n")
    answer = weakseg("data", "summary", folder, "--split", "val", "--out", tmp_path / "together.json")
    assert answer.out.splitlines()[-2].split() == ["unicorn", "–", "0"]
    assert json.loads((tmp_path / "together.json").read_text())["share_with_other"][1] == [None] * 3


def test_a_summary_where_all_labels_are_masks(weakseg: Any, folder: Path) -> None:
    (folder / "labels.csv").unlink()
    (folder / "classes.txt").write_text("cat\ndog\n")
    answer = weakseg("data", "summary", folder)
    assert answer.out.splitlines()[2].split() == ["train", "2", "0", "2"]
    assert "weak labels" in answer.out.splitlines()[-1]
    assert "cat" not in answer.out


def test_the_summary_of_an_unknown_split(weakseg: Any, folder: Path) -> None:
    answer = weakseg("data", "summary", folder, "--split", "tset")
    assert answer.status == 1
    assert 'has no split "tset". It has: train (4 images), val (2 images).' in answer.err


def test_an_empty_split(weakseg: Any, tiny_voc: Path) -> None:
    (tiny_voc / "ImageSets" / "Segmentation" / "test.txt").write_text("")
    answer = weakseg("data", "check", tiny_voc)
    assert answer.status == 1
    assert 'problem: The split "test" is empty.' in answer.out


def test_unusual_pictures_are_notes_only(weakseg: Any, folder: Path) -> None:
    images = folder / "images"
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph((20, 24)).save(images / "0.jpg", exif=exif)
    photograph().convert("CMYK").save(images / "1.jpg")
    photograph().convert("L").save(images / "2.jpg")
    for name in "345":
        (images / f"{name}.jpg").unlink()
    photograph().convert("RGBA").save(images / "3.png")
    Image.fromarray(np.full((20, 24), 40_000, np.uint16)).save(images / "4.png")
    photograph().convert("P").save(images / "5.png")
    answer = weakseg("data", "check", folder)
    assert answer.status == 0
    notes = {line for line in answer.out.splitlines() if line.startswith("note: ")}
    prefix = "note: 1 image to be converted on reading"
    assert notes == {
        f"{prefix} (EXIF rotation): 0",
        f"{prefix} (CMYK): 1",
        "note: 2 images to be converted on reading (greyscale): 2, 4",
        f"{prefix} (transparency (laid over white)): 3",
        f"{prefix} (16 bits): 4",
        f"{prefix} (a palette): 5",
    }
    assert weakseg("data", "check", folder, "--strict").status == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "problem: gone does not exist."),
        (["."], "problem: . is no data set that weakseg knows. Looked for:"),
        ([".", "--format", "vok"], 'problem: Unknown data set format "vok". Known are voc, coco, densepose, folder.'),
    ],
)
def test_what_is_no_data_set(
    weakseg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = weakseg("data", "check", *words)
    assert answer.status == 1
    assert message in answer.out


def test_simulated_labels_make_a_data_set(weakseg: Any, tiny_voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "weak" / "labels.json"
    answer = weakseg("data", "simulate", tiny_voc, "--out", out, "--kind", "points", "--kind", "tags")
    assert answer.status == 0, answer.err
    assert f"Weak labels in {out}." in answer.out
    (out.parent / "images").symlink_to(tiny_voc / "JPEGImages")
    answer = weakseg("data", "check", out.parent)
    assert answer.status == 0, answer.out
    answer = weakseg("data", "simulate", tiny_voc, "--out", out, "--kind", "poems")
    assert answer.status == 1
    assert "poems" in answer.err


def test_labels_to_lie_beside_a_data_set_are_not_called_one(weakseg: Any, tiny_voc: Path, tmp_path: Path) -> None:
    answer = weakseg("data", "simulate", tiny_voc, "--out", tmp_path / "points.json", "--kind", "points")
    assert answer.status == 0, answer.err
    assert str(tmp_path / "images") not in answer.out


def test_a_toy_data_set_is_sound(weakseg: Any, tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    answer = weakseg("data", "make-toy", toy, "--train", "6", "--val", "2", "--size", "64")
    assert answer.status == 0, answer.err
    assert f"6 + 2 images in {toy}" in answer.out
    answer = weakseg("data", "check", toy)
    assert answer.status == 0, answer.out
