"""A stranger's own pictures, by the commands of the README and nothing else: no masks, no ImageNet weights."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tiny import TINY, set_options
from weakseg import download
from weakseg.data.images import read_label_map
from weakseg.data.opening import open_dataset

CLASSES = ("Gießkanne", "fire hydrant", "小猫")
GREY, ALPHA, TURNED = "grey view", "IMG 0007 (copy)", "turned 🙃"
NAMES = (
    *("holiday 1", "Übergröße", "山", "🦒 giraffe", GREY, ALPHA, TURNED),
    *("a.b.c", "trip/day 1/x", "trip/day 2/x", "it's", "#12"),
)


def draw_pictures(root: Path) -> dict[str, tuple[int, int]]:
    """Twelve pictures of all kinds; the size (height, width) of each as people see it."""
    sizes = {}
    for number, name in enumerate(NAMES):
        height, width = 32 + 7 * (number % 4), 36 + 5 * (number % 3)
        sizes[name] = (height, width)
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[8:24, 8:24, number % 3] = 255
        image = Image.fromarray(pixels)
        options: dict[str, Any] = {}
        if name == GREY:
            image = image.convert("L")
        elif name == ALPHA:
            image.putalpha(200)
        elif name == TURNED:
            image = image.transpose(Image.Transpose.ROTATE_90)
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = 6
        path = root / "images" / f"{name}{'.png' if name in (GREY, ALPHA) else '.jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    return sizes


def with_csv(root: Path) -> None:
    with (root / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "tags"])
        for number, name in enumerate(NAMES):
            table.writerow([name, "; ".join({CLASSES[number % 3], CLASSES[number // 5]})])


def with_boxes_and_points(root: Path) -> None:
    images = {}
    for number, name in enumerate(NAMES):
        thing = CLASSES[number % 3]
        if number % 2:
            images[name] = {"boxes": [{"class": thing, "box": [8, 8, 24, 24]}]}
        else:
            images[name] = {"points": [{"class": thing, "point": [9, 9]}, {"class": "background", "point": [1, 1]}]}
    (root / "labels.json").write_text(json.dumps({"images": images}, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("write_labels", [with_csv, with_boxes_and_points])
def test_check_run_report_predict(weakseg: Any, tmp_path: Path, write_labels: Any) -> None:
    root, run, out = tmp_path / "my photos", tmp_path / "runs" / "my photos", tmp_path / "predicted"
    sizes = draw_pictures(root)
    write_labels(root)

    answer = weakseg("data", "check", root)
    assert answer.status == 0, answer.out
    assert f"note: 1 image to be converted on reading (greyscale): {GREY}" in answer.out
    assert f"note: 1 image to be converted on reading (transparency (laid over white)): {ALPHA}" in answer.out
    assert f"note: 1 image to be converted on reading (EXIF rotation): {TURNED}" in answer.out
    assert f"{root}: 0 problems, 3 notes" in answer.out
    assert weakseg("data", "check", root, "--strict").status == 1

    answer = weakseg("run", "toy-cam", "--data", root, "--out", run, *set_options(*TINY))
    assert answer.status == 0, answer.err
    assert f"Report: {run / 'report.html'}" in answer.out
    html = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in html for name in CLASSES)
    assert not re.search(r"""src=["'](?!data:)""", html), "the report needs nothing from anywhere"
    pages = re.findall(r"""href=["'](?!data:|#)([^"']+)""", html)
    assert all((run / page).is_file() for page in pages), "its further pages lie beside it"
    present = {sample.name: sample.labels.present() for sample in open_dataset(root).split("train")}
    for name, size in sizes.items():
        mask = read_label_map(run / "masks" / "masks" / f"{name}.png")
        assert mask.shape == size
        assert set(np.unique(mask).tolist()) <= {0, *present[name]}
        with Image.open(run / "masks" / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == size[::-1]

    answer = weakseg("predict", run, root / "images", "--out", out)
    assert answer.status == 0, answer.err
    for name, size in sizes.items():
        assert read_label_map(out / "masks" / f"{name}.png").shape == size
    legend = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    assert list(legend) == ["background", *sorted(CLASSES), "void"]

    answer = weakseg("report", run)
    assert answer.status == 0
    assert "Report: " in answer.out


def test_without_a_network_one_sentence_says_what_to_do(
    weakseg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = tmp_path / "photos", tmp_path / "run"
    draw_pictures(root)
    with_csv(root)
    closed = "http://127.0.0.1:9"
    for name, value in (("https_proxy", closed), ("HTTPS_PROXY", closed), ("WEAKSEG_CACHE", str(tmp_path / "cache"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(download, "RETRY_WAITS", (0.0,))
    answer = weakseg("run", "cam", "--data", root, "--out", run)
    assert answer.status == 1
    (line,) = [line for line in answer.err.splitlines() if line.startswith("Error: ")]
    assert "could not be downloaded" in line
    assert f"put the file there as {tmp_path / 'cache'}" in line
    assert "or set weights to the path of a file, or set weights: null to start from random weights." in line
    assert "Traceback" not in answer.err
    # The lock stays: a process that waits for it may hold it open.
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"download.lock"}
