"""The stage pool and the training with its crops: made, looked at, resumed, shared, and given wrong masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiny import artifacts, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.images import read_image, read_label_map, write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.methods.cda import Pool
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.report.run import write_report

SHORT = (
    "runtime.device=cpu",
    "cam.augment={crop: 32}",
    "cam.train={steps: 3, batch_size: 5}",
    "maps.scales=[1.0]",
)
RECIPE = """
extends: toy-cda
name: pasted
about: the recipe toy-cam with pasting, up to the second classifier
rounds:
  stages: [cam]
  changes:
    pool: {masks: masks}
    cam: {paste: {fewest_crops: 1}, train: {epochs: null}}
stages: {segment: null, scores: null}
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path_factory.mktemp("pool") / "data"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "pasted.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(dataset: Dataset, recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose masks were replaced by the ground truth before the pool was made of them."""
    out = tmp_path_factory.mktemp("pool") / "run"
    run(load_recipe(recipe, SHORT), dataset, out)
    for sample in dataset.split("train"):
        assert sample.mask is not None
        write_label_map(out / "masks" / "masks" / f"{sample.name}.png", sample.mask.read())
    for stage in ("round-1/pool", "round-1/cam"):
        shutil.rmtree(out / stage)
    run(load_recipe(recipe, SHORT), dataset, out)
    return out


def test_the_pool_holds_the_objects_of_the_masks(dataset: Dataset, finished: Path) -> None:
    pool = Pool.load(finished / "round-1" / "pool", dataset.classes)
    names = [sample.name for sample in dataset.split("train")]
    assert [list(part) for part in pool.names] == [names[0::2], names[1::2]]
    sample = dataset.split("train")[3]
    mask, cutout = read_label_map(finished / "masks" / "masks" / f"{sample.name}.png"), pool.read(2, sample.name)
    assert cutout.inside.sum() == np.count_nonzero(mask)
    assert np.array_equal(cutout.image[cutout.inside], read_image(sample.image)[mask > 0])


def test_the_second_classifier_learns_from_pairs(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "round-1/cam" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert lines[-1]["epoch"] == 0.5, "a batch of five is two pairs, and eight images are four of these"
    first = [json.loads(line) for line in (finished / "cam" / "train.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] != first[0]["loss"]


def test_a_killed_run_goes_on_to_the_same_bytes(dataset: Dataset, recipe: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    key = json.loads((out / "round-1" / "pool" / "manifest.json").read_text())["key"]
    (out / "round-1" / "pool" / "manifest.json").unlink()
    (out / "round-1" / "pool" / "index.json").unlink()
    (out / "round-1" / "pool" / "pending.json").write_text(json.dumps({"key": key}))
    crops = sorted((out / "round-1" / "pool" / "crops").rglob("*.png"))
    crops[0].unlink()
    kept = crops[1].stat().st_mtime_ns
    shutil.rmtree(out / "round-1/cam")
    run(load_recipe(recipe, SHORT), dataset, out)
    assert crops[1].stat().st_mtime_ns == kept, "finished crops are not made again"
    before, after = artifacts(finished), artifacts(out)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def test_the_report_shows_the_pool_and_what_is_pasted(dataset: Dataset, finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    assert ">Pool</h2>" in page
    assert "kettle: 4 of 4 crops" in page
    assert "spoon: 4 of 4 crops" in page
    assert page.count("spoon on kettle</figcaption>") == 4
    assert page.count("kettle on spoon</figcaption>") == 4


def test_classes_without_crops_are_told(dataset: Dataset, recipe: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    run(load_recipe(recipe, [*SHORT, "round-1/pool.smallest=0.99", "round-1/pool.largest=1"]), dataset, out)
    assert Pool.load(out / "round-1" / "pool", dataset.classes).labels == []
    page = write_report(out).read_text(encoding="utf-8")
    assert "Without crops, and so never pasted: kettle, spoon." in page


def test_classes_with_few_crops_are_told(dataset: Dataset, recipe: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    run(load_recipe(recipe, [*SHORT, "round-1/cam.paste.fewest_crops=5"]), dataset, out)
    page = write_report(out).read_text(encoding="utf-8")
    assert "Fewer than 5 crops, and so never pasted: kettle, spoon." in page
    assert "nothing on kettle</figcaption>" in page


def test_a_mask_of_another_size_is_an_error_that_names_the_image(
    dataset: Dataset, recipe: str, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    mask = np.zeros((7, 9), np.uint8)
    mask[2:5, 2:6] = 1
    write_label_map(out / "masks" / "masks" / "train 0.png", mask)
    shutil.rmtree(out / "round-1" / "pool")
    with pytest.raises(WeaksegError, match=r"The mask of .*train 0\.png has 9×7 pixels, the image 44×36\."):
        run(load_recipe(recipe, SHORT), dataset, out)
