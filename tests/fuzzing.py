"""Mutated files of every kind that weakseg reads: none may end in another exception than `WeaksegError`.

    python tests/fuzzing.py [--count 100000] [--seed 0] [--only NAME …]

runs the long version and prints what it did; `tests/test_fuzzing.py` runs a short one.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

from weakseg.data.check import check_dataset
from weakseg.data.images import write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.files import read_json, read_npz, write_json, write_npz
from weakseg.labels import Classes
from weakseg.methods.cam import CAM
from weakseg.methods.store import Model, load_model, save_model
from weakseg.models.registry import BackboneSettings
from weakseg.models.weights import read_state
from weakseg.pipeline.recipe import load_recipe

SIZE = (6, 8)
SUFFIXES = ("jpg", "png", "webp", "tif", "gif", "bmp", "ppm", "avif")


@dataclass(frozen=True)
class Target:
    """A sound example that `make` writes into a folder, and `read`, which takes it or raises `WeaksegError`.

    `files` of it are mutated. Whatever `read` does, it must never raise anything else.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...]


# Sound examples


def picture(path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def mask(path: Path) -> None:
    write_label_map(path, np.resize(np.array([0, 1, 255], np.uint8), SIZE))


def make_table(root: Path) -> None:
    for name in ("a", "b"):
        picture(root / "images" / f"{name}.png")
    mask(root / "masks" / "a.png")
    mask(root / "scribbles" / "b.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "labels.csv").write_text('image,tags,split\na.png,"cat;dog",train\nb,dog,val\n')


def make_document(root: Path) -> None:
    make_table(root)
    (root / "labels.csv").unlink()
    one = {
        "tags": ["cat"],
        "split": "train",
        "boxes": [{"class": "cat", "box": [0, 1.5, 4, 5]}],
        "points": [{"class": "background", "point": [1, 2]}],
        "scribbles": [{"class": "dog", "points": [[0, 0], [5, 5]]}],
    }
    write_json(root / "labels.json", {"classes": ["cat", "dog"], "images": {"a.png": one, "b": {"tags": []}}})


ANNOTATION = """<?xml version="1.0" encoding="utf-8"?>
<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>
</annotation>
"""


def make_voc(root: Path) -> None:
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    mask(root / "SegmentationClass" / "a.png")
    for folder in ("ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/aug.txt").write_text("/JPEGImages/a.jpg /SegmentationClass/a.png\n")
    (root / "Annotations/a.xml").write_text(ANNOTATION)
    write_json(root / "classes.json", {"background": 0, "cat": 1, "dog": 2, "void": 255})
    write_json(root / "tags.json", {"b": ["dog"]})
    vectors = {"a": np.array([1, 0], np.float32), "b": np.array([0, 1], np.float32)}
    np.save(root / "cls_labels.npy", vectors, allow_pickle=True)  # type: ignore[arg-type]


def make_coco(root: Path) -> None:
    picture(root / "train2014" / "a.jpg")
    code = {"size": list(SIZE), "counts": [10, 5, 33]}
    drawn = np.asfortranarray(np.resize(np.array([0, 1, 1], np.uint8), SIZE))
    packed = {"size": list(SIZE), "counts": coco_mask.encode(drawn)["counts"].decode()}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2], "segmentation": code, "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2], "segmentation": packed},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    write_json(root / "annotations" / "instances_train2014.json", content)


def make_images(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in SUFFIXES:
        picture(root / "images" / f"{suffix}.{suffix}", **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
    (root / "classes.txt").write_text("cat\n")


def make_model(root: Path) -> None:
    network = CAM(CAM.Settings(backbone=BackboneSettings(name="small", weights=None)), 2)
    save_model(root / "model", Model("cam", Classes(["cat", "dog"]), network, {"scales": [1.0]}))


def make_weights(root: Path) -> None:
    state = {"conv.weight": torch.ones(2, 3, 3, 3), "conv.bias": torch.zeros(2)}
    save_file(state, root / "x.safetensors")
    torch.save(state, root / "x.pth")


def make_arrays(root: Path) -> None:
    write_npz(root / "x.npz", {"labels": np.array([1, 2], np.int16), "maps": np.ones((2, 3, 4), np.float16)})
    write_json(root / "x.json", {"a": [1, 2.5, None, "é"], "b": {"c": True}})


def make_recipe(root: Path) -> None:
    (root / "recipe.yaml").write_text(load_recipe("toy-cam").as_yaml())


# What is done with them


def check(root: Path) -> None:
    report = check_dataset(root)
    for text in (*report.problems, *report.notes, *report.contents):
        _require_plain(text)
    for sample in (sample for samples in open_dataset(root).splits.values() for sample in samples):
        if sample.mask is not None:
            sample.mask.read()


def read_model(root: Path) -> None:
    load_model(root / "model")


def read_weights(root: Path) -> None:
    for name in ("x.safetensors", "x.pth"):
        read_state(root / name)


def read_arrays(root: Path) -> None:
    read_json(root / "x.json")
    read_npz(root / "x.npz")


PYTHONS = (
    "NoneType",
    "object is not",
    "unpack",
    "unhashable",
    "codec can't",
    "Input should",
    "instance of",
    "Traceback",
    "Error(",
    "Error:",
    "has no attribute",
    "invalid literal",
    "could not convert",
    "state_dict",
    "out of range",
)
"""Words that a message for people never has."""


def _require_plain(text: str) -> None:
    found = [word for word in PYTHONS if word in text]
    if found:
        raise AssertionError(f"the message has words of Python: {text}")


TARGETS = {
    "table": Target(make_table, check, ("labels.csv", "classes.txt", "masks/a.png", "scribbles/b.png", "images/a.png")),
    "document": Target(make_document, check, ("labels.json",)),
    "voc": Target(
        make_voc,
        check,
        (
            "ImageSets/Segmentation/train.txt",
            "ImageSets/Segmentation/aug.txt",
            "Annotations/a.xml",
            "classes.json",
            "tags.json",
            "cls_labels.npy",
        ),
    ),
    "coco": Target(make_coco, check, ("annotations/instances_train2014.json",)),
    "images": Target(make_images, check, tuple(f"images/{suffix}.{suffix}" for suffix in SUFFIXES)),
    "model": Target(
        make_model, lambda root: load_model(root / "model"), ("model/config.json", "model/model.safetensors")
    ),
    "weights": Target(make_weights, read_weights, ("x.safetensors", "x.pth")),
    "arrays": Target(make_arrays, read_arrays, ("x.json", "x.npz")),
    "recipe": Target(make_recipe, lambda root: load_recipe(str(root / "recipe.yaml")), ("recipe.yaml",)),
}


# Mutations

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 0.5, float("nan"), float("inf"), "", "é", "\ud800", "1", "x" * 300, [], [[]], {},
    {"a": 1},
)  # fmt: skip
WORDS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b"\n", b"\r", b",", b";", b"[", b"]", b"{", b"}", b"<", b">",
    b"&", b"-1", b"1e999", b"NaN", b"null", b"true", b": ", b"- ", b"/../", b"\xe9", "猫".encode(), b"9" * 400,
    b"2001-99-99",
)  # fmt: skip


def mutated(path: Path, rng: np.random.Generator) -> bytes:
    """The content of a file after one to four random changes: of a value, of bits, of words or of its length."""
    if path.suffix == ".json" and rng.random() < 0.7:
        content = json.loads(path.read_text(encoding="utf-8"))
        for _ in range(rng.integers(1, 3)):
            content = _changed(content, rng)
        return json.dumps(content).encode()
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data) + 1))
        kind = rng.integers(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1 and place < len(data):
            data[place] = int(rng.integers(256))
        elif kind == 2:
            data[place : place + int(rng.integers(4))] = WORDS[rng.integers(len(WORDS))]
        elif kind == 3:
            length = int(rng.integers(1, 40))
            data[place:place] = data[place : place + length]
        else:
            del data[place : place + int(rng.integers(1, 60))]
    return bytes(data)


def _changed(value: Any, rng: np.random.Generator) -> Any:
    """A JSON value with something inside of it removed, doubled or replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {other: inner for other, inner in value.items() if other != key}
        if rng.random() < 0.1:
            return {**value, f"{key} ": value[key]}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = int(rng.integers(len(value)))
        if rng.random() < 0.1:
            return [*value[:index], *value[index + 1 :]]
        if rng.random() < 0.1:
            return [*value, value[index]]
        return [*value[:index], _changed(value[index], rng), *value[index + 1 :]]
    if isinstance(value, int | float) and rng.random() < 0.3:
        return str(value)
    return VALUES[rng.integers(len(VALUES))]


@dataclass(frozen=True)
class Crash:
    """An input that ended in an exception which is none of ours; `seed` makes it again."""

    target: str
    seed: int
    file: str
    error: str


def crashes(name: str, seeds: range) -> Iterator[Crash | None]:
    """Read a mutated example for each seed; None for one that was taken, or refused with a `WeaksegError`."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sound, root = Path(folder, "sound"), Path(folder, "mutated")
        sound.mkdir()
        target.make(sound)
        shutil.copytree(sound, root)
        for seed in seeds:
            rng = np.random.default_rng([seed, *name.encode()])
            chosen = rng.choice(target.files, size=int(rng.integers(1, min(3, len(target.files)) + 1)), replace=False)
            for file in chosen:
                (root / file).write_bytes(mutated(sound / file, rng))
            yield _crash(name, seed, target, root, ", ".join(chosen))
            for file in chosen:
                shutil.copyfile(sound / file, root / file)


def _crash(name: str, seed: int, target: Target, root: Path, file: str) -> Crash | None:
    try:
        target.read(root)
    except WeaksegError as error:
        text = str(error)
        found = [word for word in PYTHONS if word in text]
        return Crash(name, seed, file, f"words of Python in: {text}") if found else None
    except Exception:
        return Crash(name, seed, file, traceback.format_exc())
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, found = time.monotonic(), 0
    each = -(-options.count // len(options.only))
    for name in options.only:
        start = time.monotonic()
        of_target = [crash for crash in crashes(name, range(options.seed, options.seed + each)) if crash]
        found += len(of_target)
        print(f"{name}: {each} inputs, {len(of_target)} crashes, {time.monotonic() - start:.0f} s", flush=True)
        for crash in of_target[:3]:
            print(f"  seed {crash.seed}, {crash.file}\n{crash.error}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.monotonic() - begun
    print(f"{each * len(options.only)} inputs, {found} crashes, {seconds:.0f} s, peak memory {peak:.0f} MiB")
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
