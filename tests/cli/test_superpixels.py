"""`weakseg superpixels`: files out of files, what the options change, and what is told of mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from weakseg.data.images import read_image, read_superpixels
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.pipeline.superpixels import SuperpixelSettings, superpixels

SIZES = {"one": (1, 1), "flat": (3, 200), "odd": (67, 101), "sub/large": (96, 120)}
SMALL = SuperpixelSettings(k=20, min_size=10, count=7)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noise on patches, of odd sizes."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        patches = rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3))
        image = patches.repeat(12, 0).repeat(12, 1)[:height, :width] + rng.integers(-9, 10, (height, width, 3))
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of the small backbone, as nobody publishes them."""
    torch.manual_seed(0)
    save_file(build_backbone(BackboneSettings(name="small", weights=None)).state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


Cut = Callable[..., Any]


@pytest.fixture
def cut(weakseg: Any, photos: Path, weights: Path, tmp_path: Path) -> Cut:
    """`weakseg superpixels` with the small backbone and settings that suit small images."""

    def command(*options: str | Path, images: Path = photos, out: Path = tmp_path / "out") -> Any:
        small = ("--k", "20", "--min-size", "10", "--backbone", "small", "--weights", weights)
        return weakseg("superpixels", images, "--out", out, *small, *options)

    return command


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_hold_what_python_gives(cut: Cut, photos: Path, weights: Path, tmp_path: Path) -> None:
    answer = cut("--count", "7")
    assert answer.status == 0, answer.err
    assert "4 images" in answer.out
    out = tmp_path / "out"
    assert set(files(out)) == {"superpixels.json", *(f"{name}.png" for name in SIZES)}
    backbone = build_backbone(BackboneSettings(name="small", output_stride=8, weights=str(weights))).eval()
    for name, size in SIZES.items():
        ids = read_superpixels(out / f"{name}.png")
        assert ids.shape == size
        np.testing.assert_array_equal(ids, superpixels(read_image(photos / f"{name}.png"), backbone, SMALL))
    assert read_superpixels(out / "sub/large.png").max() + 1 == 7


def test_without_merging_there_are_more_and_no_weights_are_needed(weakseg: Any, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = weakseg("superpixels", photos, "--out", out, "--no-merge", "--k", "20", "--min-size", "10")
    assert answer.status == 0, answer.err
    for name in SIZES:
        expected = superpixels(read_image(photos / f"{name}.png"), None, SMALL)
        np.testing.assert_array_equal(read_superpixels(out / f"{name}.png"), expected)
    assert read_superpixels(out / "sub/large.png").max() + 1 > 7


def test_the_same_command_continues_and_gives_the_same_bytes(cut: Cut, tmp_path: Path) -> None:
    assert cut().status == 0
    before = files(tmp_path / "out")
    (tmp_path / "out" / "odd.png").unlink()
    kept = (tmp_path / "out" / "flat.png").stat().st_mtime_ns
    answer = cut()
    assert answer.status == 0, answer.err
    assert "3 were there" in answer.out
    assert files(tmp_path / "out") == before
    assert (tmp_path / "out" / "flat.png").stat().st_mtime_ns == kept


def test_a_folder_of_other_settings_is_left_alone(cut: Cut, tmp_path: Path) -> None:
    assert cut().status == 0
    before = files(tmp_path / "out")
    answer = cut("--count", "9")
    assert answer.status == 1
    assert str(tmp_path / "out") in answer.err
    assert files(tmp_path / "out") == before


def test_the_image_itself_is_not_taken_for_its_superpixels(cut: Cut, photos: Path) -> None:
    before = files(photos)
    answer = cut(images=photos / "odd.png", out=photos)
    assert answer.status == 1
    assert str(photos) in answer.err
    assert files(photos) == before


def test_damaged_images_are_told_and_the_others_are_done(cut: Cut, photos: Path, tmp_path: Path) -> None:
    (photos / "flat.png").write_bytes(b"no image")
    content = (photos / "odd.png").read_bytes()
    (photos / "odd.png").write_bytes(content[: len(content) // 2])
    answer = cut()
    assert answer.status == 1
    assert str(photos / "flat.png") in answer.err
    assert str(photos / "odd.png") in answer.err
    assert "2 of 4 images failed" in answer.err
    assert set(files(tmp_path / "out")) == {"superpixels.json", "one.png", "sub/large.png"}


def test_an_image_of_too_many_segments_is_told_and_the_others_are_done(cut: Cut, photos: Path, tmp_path: Path) -> None:
    answer = cut("--k", "0.001", "--min-size", "1")
    assert answer.status == 1
    assert str(photos / "sub/large.png") in answer.err
    assert set(files(tmp_path / "out")) == {"superpixels.json", "one.png", "flat.png", "odd.png"}


def test_the_settings_are_written_down(cut: Cut, tmp_path: Path) -> None:
    assert cut("--count", "9").status == 0
    settings = json.loads((tmp_path / "out" / "superpixels.json").read_text())
    assert (settings["k"], settings["count"], settings["backbone"]["name"]) == (20, 9, "small")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--count", "0"], "count"),
        (["--min-size", "0"], "min_size"),
        (["--k", "-1"], "k"),
        (["--k", "nan"], "k"),
        (["--backbone", "smal"], "small"),
        (["--backbone", "resnet18"], "w.safetensors"),
        (["--weights", "gone.pth"], "gone.pth"),
        (["--no-merge"], "--no-merge"),
        (["--device", "gpu"], "device"),
    ],
)
def test_wrong_options(cut: Cut, tmp_path: Path, options: list[str], named: str) -> None:
    answer = cut(*options)
    assert answer.status == 1
    assert named in answer.err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_numbers_are_told(cut: Cut, weights: Path, tmp_path: Path) -> None:
    network = build_backbone(BackboneSettings(name="small", weights=None))
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in network.state_dict().items()}
    save_file({name: tensor for name, tensor in state.items() if tensor.is_floating_point()}, weights)
    answer = cut()
    assert answer.status == 1
    assert "Traceback" not in answer.err
    assert "finite" in answer.err
