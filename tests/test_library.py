"""The library from Python: what the README shows, arrays in all their forms, and mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import weakseg
from tiny import TINY, write_tiny_voc
from weakseg.data.images import read_image, write_label_map
from weakseg.ops.crf_parameters import CRFParameters
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.pipeline.recipe import load_recipe

README = Path(__file__).parents[1] / "README.md"
CHANGES: dict[str, Any] = {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in TINY)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a finished run."""
    root = tmp_path_factory.mktemp("library")
    weakseg.run("toy-cam", write_tiny_voc(root / "data"), root / "run", changes=CHANGES, announce=lambda line: None)
    return root / "data", root / "run"


def test_what_the_readme_shows_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    images = tmp_path / "photos" / "images"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(noise.integers(0, 256, (40, 48, 3), np.uint8)).save(images / f"kettle {number}.jpg")
    rows = "".join(f"kettle {number}.jpg,kettle{';spoon' * (number % 2)}\n" for number in range(4))
    (tmp_path / "photos" / "labels.csv").write_text(f"image,tags\n{rows}")
    # The recipe of the same name, but small and short.
    (tmp_path / "cam.yaml").write_text(load_recipe("toy-cam", TINY).as_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(block.replace('"cam"', '"cam.yaml"'), found)
    assert found["model"].classes == ("kettle", "spoon")
    assert found["prediction"].labels.shape == (40, 48)
    assert found["refined"].shape == found["prediction"].scores.shape


def test_a_run_returns_its_scores(finished: tuple[Path, Path]) -> None:
    data, root = finished
    again = weakseg.run("toy-cam", data, root, changes=CHANGES, announce=lambda line: None)
    assert [(row["title"], row["split"]) for row in again.scores][-1] == ("DeepLab", "val")
    assert (root / "report.html").is_file()


def test_files_and_arrays_are_predicted_alike(finished: tuple[Path, Path]) -> None:
    data, root = finished
    model = weakseg.load(root, device="cpu")
    path = data / "JPEGImages" / "val 0.png"
    of_file, of_array = model.predict(path), model.predict(read_image(path))
    assert np.array_equal(of_file.labels, of_array.labels)
    assert np.array_equal(of_file.scores, of_array.scores)
    assert model.predict(str(path), scales=[0.5], mirror=True).labels.shape == of_file.labels.shape
    grey = np.zeros((20, 30), np.uint8)
    assert np.array_equal(model.predict(grey).scores, model.predict(np.zeros((20, 30, 3), np.uint8)).scores)


@pytest.mark.parametrize("image", [np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), np.zeros(5, np.uint8)])
def test_other_arrays_are_no_images(image: Any, finished: tuple[Path, Path]) -> None:
    with pytest.raises(weakseg.WeaksegError, match="uint8"):
        weakseg.load(finished[1], device="cpu").predict(image)


def test_wrong_changes_are_named(finished: tuple[Path, Path]) -> None:
    model = weakseg.load(finished[1], device="cpu")
    with pytest.raises(weakseg.WeaksegError, match="scale"):
        model.predict(np.zeros((4, 5, 3), np.uint8), scale=[1])
    with pytest.raises(weakseg.WeaksegError, match="threshold"):
        model.predict(np.zeros((4, 5, 3), np.uint8), threshold=0.5)
    with pytest.raises(weakseg.WeaksegError, match="epoch"):
        weakseg.run("toy-cam", finished[0], finished[1], changes={"cam.train.epoch": 3})


def test_refined_scores_are_those_of_the_crf() -> None:
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (12, 15, 3), np.uint8), rng.random((3, 12, 15))
    scores /= scores.sum(0)
    refined = weakseg.refine(image, scores, crf="irnet")
    np.testing.assert_array_equal(refined, dense_crf(image, unary_from_probabilities(scores), "irnet"))
    np.testing.assert_allclose(refined.sum(0), 1, rtol=1e-5)
    unchanged = weakseg.refine(image, scores, crf=CRFParameters(iterations=0))
    np.testing.assert_allclose(unchanged, scores, atol=1e-4)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.full((2, 4, 5), -0.7), "-0.7"),
        (np.full((2, 4, 5), 3.0), "3"),
        (np.full((2, 4, 5), np.nan), "nan"),
        (np.full((2, 5, 4), 0.5), "(2, 5, 4)"),
        (np.full((4, 5), 0.5), "(4, 5)"),
        (np.full((0, 4, 5), 0.5), "(0, 4, 5)"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(scores: Any, said: str) -> None:
    with pytest.raises(weakseg.WeaksegError) as caught:
        weakseg.refine(np.zeros((4, 5, 3), np.uint8), scores)
    assert said in str(caught.value)


def test_masks_are_evaluated(tmp_path: Path, finished: tuple[Path, Path]) -> None:
    data, _ = finished
    truth = sorted((data / "SegmentationClass").glob("val *.png"))
    for path in truth:
        write_label_map(tmp_path / path.name, np.asarray(Image.open(path)))
    assert weakseg.evaluate(tmp_path, data).confusion.mean_iou == pytest.approx(1)


def test_importing_the_library_imports_no_network_library() -> None:
    check = "import sys, weakseg; assert not {'torch', 'numba', 'PIL'} & set(sys.modules); weakseg.load"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
