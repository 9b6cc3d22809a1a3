"""`weakseg predict` on a finished run: files out of files, and what the options change."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import process
from weakseg.data.images import read_label_map
from weakseg.files import read_npz

SIZES = {"one": (1, 1), "flat": (200, 3), "odd": (67, 101)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = tmp_path / "photos" / f"size {name}" / f"{name} 🏔.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def names(kind: str, suffix: str) -> set[str]:
    return {f"{kind}/size {name}/{name} 🏔{suffix}" for name in SIZES}


def test_a_folder_of_odd_sizes(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = weakseg("predict", finished.run, photos, "--out", out, "--probabilities")
    assert answer.status == 0, answer.err
    assert "The segmenter deeplab decided every pixel among 2 classes." in answer.out
    assert f"3 images: masks in {out / 'masks'}, overlays in {out / 'overlays'}" in answer.out
    assert "predicting: 3/3 images" in answer.err
    assert files(out) == {"classes.json", *names("masks", ".png"), *names("overlays", ".png"), *names("scores", ".npz")}
    assert json.loads((out / "classes.json").read_text()) == {"background": 0, "kettle": 1, "spoon": 2, "void": 255}
    for name, (width, height) in SIZES.items():
        place = f"size {name}/{name} 🏔"
        labels = read_label_map(out / "masks" / f"{place}.png")
        assert labels.shape == (height, width)
        with Image.open(out / "overlays" / f"{place}.png") as overlay:
            assert (overlay.size, overlay.mode) == ((width, height), "RGB")
        arrays = read_npz(out / "scores" / f"{place}.npz")
        scores = arrays["scores"].astype(np.float32)
        assert arrays["labels"].tolist() == [0, 1, 2]
        assert scores.shape == (3, height, width)
        np.testing.assert_allclose(scores.sum(0), 1, atol=2e-3)
        # Rounded to 16 bits the two best may have become equal.
        best = np.take_along_axis(scores, labels[None].astype(np.int64), 0)[0]
        np.testing.assert_array_equal(best, scores.max(0))


def test_one_file_without_overlays(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    image = photos / "size odd" / "odd 🏔.jpg"
    answer = weakseg("predict", finished.run / "segment" / "model", image, "--out", tmp_path / "out", "--no-overlays")
    assert answer.status == 0, answer.err
    assert ", overlays in" not in answer.out
    assert files(tmp_path / "out") == {"classes.json", "masks/odd 🏔.png"}


def test_a_second_time_gives_the_same_bytes(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert weakseg("predict", finished.run, photos, "--out", tmp_path / name, "--probabilities").status == 0
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.fixture
def scores_with(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    image = photos / "size odd" / "odd 🏔.jpg"

    def scores(*options: str) -> np.ndarray:
        answer = weakseg("predict", finished.run, image, "--out", tmp_path / "out", "--probabilities", *options)
        assert answer.status == 0, answer.err
        return read_npz(tmp_path / "out" / "scores" / "odd 🏔.npz")["scores"].astype(np.float32)

    return scores


def test_options_change_the_scores_from_what_the_recipe_says(scores_with: Callable[..., np.ndarray]) -> None:
    default = scores_with()
    for same in (["--scales", "1"], ["--mirror"], ["--crf", "none"], ["--device", "cpu"]):
        np.testing.assert_array_equal(scores_with(*same), default)
    for other in (["--scales", "1,0.5"], ["--no-mirror"], ["--crf", "deeplab"]):
        assert np.abs(scores_with(*other) - default).max() > 1e-3, other


def test_the_crf_is_named_in_the_answer(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    answer = weakseg("predict", finished.run, photos, "--out", tmp_path / "out", "--crf", "deeplab")
    assert "refined by dense CRF (deeplab)" in answer.out


def test_a_localiser_says_that_the_classifier_decides(
    weakseg: Any, finished: Any, photos: Path, tmp_path: Path
) -> None:
    model, out = finished.run / "cam" / "model", tmp_path / "out"
    answer = weakseg("predict", model, photos, "--out", out, "--threshold", "2", "--probabilities")
    assert answer.status == 0, answer.err
    assert "The classifier cam decided by its own scores which classes are present (probability ≥ 0.5)" in answer.out
    assert "by its activation maps where (threshold 2.0)" in answer.out
    for path in (out / "masks").rglob("*.png"):
        assert not read_label_map(path).any(), "no activation reaches 2"
        assert read_npz(out / "scores" / path.relative_to(out / "masks").with_suffix(".npz"))["labels"][0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "1,big"], "Error: inference.scales[1]: expected a number"),
        (["--scales", "-1"], "Error: inference.scales[0]: expected a number of 0.01 or more"),
        (["--crf", "deeplob"], "Error: inference.crf: there is no such set of CRF parameters; known: affinitynet"),
        (["--threshold", "0.2"], "Error: threshold has no effect on a segmenter"),
        (["--device", "gpu"], 'Error: device: expected auto, cpu or cuda (found "gpu")'),
    ],
)
def test_wrong_options(
    weakseg: Any, finished: Any, photos: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    answer = weakseg("predict", finished.run, photos, "--out", tmp_path / "out", *options)
    assert answer.status == 1
    assert message in answer.err
    assert not (tmp_path / "out").exists()


def test_wrong_images(weakseg: Any, finished: Any, tmp_path: Path) -> None:
    def refused(*images: Path) -> str:
        answer = weakseg("predict", finished.run, *images, "--out", tmp_path / "out")
        assert answer.status == 1
        assert not files(tmp_path / "out") - {"classes.json"}
        return str(answer.err)

    (tmp_path / "empty").mkdir()
    (tmp_path / "letter.txt").write_text("dear reader")
    assert "letter.txt is not a readable JPEG / PNG / " in refused(tmp_path / "letter.txt")
    assert "empty holds no images (.jpg, .jpeg, .jpe" in refused(tmp_path / "empty")
    assert "gone does not exist" in refused(tmp_path / "gone")
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "empty" / name)
    assert "a.png would both be written as a.png. Rename one." in refused(tmp_path / "empty")


def test_damaged_images_do_not_stop_the_others(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    flat, one = photos / "size flat" / "flat 🏔.jpg", photos / "size one" / "one 🏔.jpg"
    flat.write_bytes(flat.read_bytes()[:-100])
    one.write_text("dear reader")
    answer = weakseg("predict", finished.run, photos, "--out", tmp_path / "out")
    assert answer.status == 1
    assert f"1 images: masks in {tmp_path / 'out' / 'masks'}" in answer.out
    failed, first, second = answer.err.strip().splitlines()[-3:]
    assert failed == "Error: 2 of 3 images failed:"
    assert first.startswith(f"{flat} cannot be decoded")
    assert second.startswith(f"{one} is not a readable JPEG")
    assert files(tmp_path / "out") == {
        "classes.json", "masks/size odd/odd 🏔.png", "overlays/size odd/odd 🏔.png",
    }  # fmt: skip


def test_wrong_places(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = weakseg("predict", finished.run, photos, "--out", tmp_path / "file")
    assert answer.status == 1
    assert "classes.json could not be written: " in answer.err
    answer = weakseg("predict", photos, photos, "--out", tmp_path / "out")
    assert answer.status == 1
    assert "photos is neither a model folder (with config.json) nor a run (with recipe.yaml)." in answer.err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: (model / "config.json").unlink(), "is neither a model folder (with config.json)"),
        (lambda model: (model / "config.json").write_text("{"), "config.json is not valid JSON: line 1, column 2"),
        (lambda model: (model / "model.safetensors").unlink(), "model.safetensors"),
        (
            lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:9999]),
            "model.safetensors",
        ),
        (
            lambda model: (model / "config.json").write_text(
                (model / "config.json").read_text().replace('"kettle",', '"kettle", "fork",')
            ),
            "does not hold the weights of deeplab for 3 classes",
        ),
    ],
    ids=["no configuration", "broken configuration", "no weights", "truncated weights", "other classes"],
)
def test_a_broken_model_folder(
    weakseg: Any,
    finished: Any,
    photos: Path,
    tmp_path: Path,
    copy_tree: Callable[[Path, Path], Path],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    model = copy_tree(finished.run / "segment" / "model", tmp_path / "model")
    damage(model)
    answer = weakseg("predict", model, photos, "--out", tmp_path / "out")
    assert answer.status == 1
    assert message in answer.err
    assert not (tmp_path / "out").exists()


def test_a_table_of_areas(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    answer = weakseg("predict", finished.run, photos, "--out", tmp_path / "out", "--table", "--no-overlays")
    assert answer.status == 0, answer.err
    header, *rows = csv.reader((tmp_path / "out" / "areas.csv").open(encoding="utf-8", newline=""))
    assert header == ["image", "pixels", "background", "kettle", "spoon"]
    assert [row[0] for row in rows] == sorted(f"size {name}/{name} 🏔.jpg" for name in SIZES)
    for name, *areas in rows:
        mask = read_label_map((tmp_path / "out" / "masks" / name).with_suffix(".png"))
        assert list(map(int, areas)) == [mask.size, *np.bincount(mask.ravel(), minlength=3)]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_localiser_can_be_told_the_classes(
    weakseg: Any, finished: Any, photos: Path, tmp_path: Path, suffix: str
) -> None:
    known = {"photos/size odd/odd 🏔.jpg": ["spoon"], "flat 🏔": [], "elsewhere.jpg": ["kettle"]}
    tags = tmp_path / f"tags.{suffix}"
    if suffix == "csv":
        rows = [f"{name},{';'.join(classes)}" for name, classes in known.items()]
        tags.write_text("\n".join(["image,tags", *rows]), encoding="utf-8")
    else:
        tags.write_text(json.dumps({"images": {name: {"tags": classes} for name, classes in known.items()}}))
    (photos / "size flat" / "flat 🏔.jpg").rename(photos / "flat 🏔.jpg")
    words = ("predict", finished.run / "cam" / "model", photos, "--out", tmp_path / "out", "--probabilities")
    answer = weakseg(*words, "--tags", tags)
    assert answer.status == 0, answer.err
    assert "was told which classes are present in 2 of 3 images" in answer.out
    assert read_npz(tmp_path / "out" / "scores" / "size odd" / "odd 🏔.npz")["labels"].tolist() == [0, 2]
    assert read_npz(tmp_path / "out" / "scores" / "flat 🏔.npz")["labels"].tolist() == [0]


def test_tags_that_cannot_be_used(weakseg: Any, finished: Any, photos: Path, tmp_path: Path) -> None:
    tags = tmp_path / "tags.csv"
    tags.write_text("image,tags\nsize one/one 🏔,teapot\n", encoding="utf-8")
    answer = weakseg("predict", finished.run / "cam" / "model", photos, "--out", tmp_path / "out", "--tags", tags)
    assert answer.status == 1
    assert 'tags.csv, line 2: Unknown class "teapot"' in answer.err
    tags.write_text("image,tags\nanother,kettle\n", encoding="utf-8")
    answer = weakseg("predict", finished.run / "cam" / "model", photos, "--out", tmp_path / "out", "--tags", tags)
    assert answer.status == 1
    assert "tags.csv says nothing of any of the 3 images" in answer.err
    answer = weakseg("predict", finished.run, photos, "--out", tmp_path / "out", "--tags", tags)
    assert "--tags has no effect on a segmenter" in answer.err


LITTLE_MEMORY = """
import os, resource, sys
from pathlib import Path
import torch
from weakseg.cli import main
from weakseg.pipeline.predict import find_model

find_model(Path(sys.argv[2]))
torch.nn.functional.conv2d(torch.zeros(1, 3, 9, 9), torch.zeros(3, 3, 3, 3))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_an_image_too_large_for_the_memory_does_not_stop_the_others(
    finished: Any, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (5000, 4000), "green").save(photos / "huge.jpg")
    command = ["predict", finished.run, photos, "--out", tmp_path / "out", "--device", "cpu"]
    done = process(*command, program=("-c", LITTLE_MEMORY), MALLOC_ARENA_MAX="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error: 1 of 4 images failed:" in done.stderr
    assert f"{photos / 'huge.jpg'} is too large for the memory. Scale it down" in done.stderr
    assert {file for file in files(tmp_path / "out") if file.startswith("masks/")} == names("masks", ".png")
