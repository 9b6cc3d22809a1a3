"""The stage of superpixels: made, read from a folder, shared, killed and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from commands import in_two_processes, killed_at, process
from tiny import artifacts, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.images import read_image, read_label_map, write_label_map, write_superpixels
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import load_recipe, with_weights
from weakseg.pipeline.run import run
from weakseg.pipeline.stages.superpixels import Superpixels
from weakseg.pipeline.superpixels import superpixels
from weakseg.report.run import write_report

RECIPE = """
name: only superpixels
about: the stage alone
runtime: {device: cpu}
stages:
  ids: {kind: superpixels, k: 20, min_size: 5, count: 6, backbone: {name: small, output_stride: 8, weights: null}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "ids.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path / "data"))


def test_every_image_to_learn_from_has_its_superpixels(recipe: str, dataset: Dataset, tmp_path: Path) -> None:
    run(load_recipe(recipe), dataset, tmp_path / "run")
    for sample in dataset.split("train"):
        ids = Superpixels.array_of(tmp_path / "run" / "ids", sample)
        assert ids.dtype == np.int32
        assert ids.shape == read_image(sample.image).shape[:2]
        assert np.array_equal(np.unique(ids), np.arange(6))


def test_the_report_shows_them(recipe: str, dataset: Dataset, tmp_path: Path) -> None:
    run(load_recipe(recipe), dataset, tmp_path / "run")
    assert "ids: 6" in write_report(tmp_path / "run").read_text()


def test_without_a_backbone_nothing_is_merged(recipe: str, dataset: Dataset, tmp_path: Path) -> None:
    without = load_recipe(recipe, ["ids.backbone=null"])
    run(without, dataset, tmp_path / "run")
    sample, settings = dataset.split("train")[0], without.stages["ids"]
    assert isinstance(settings, Superpixels)
    expected = superpixels(read_image(sample.image), None, settings)
    assert expected.max() + 1 > settings.count
    assert np.array_equal(Superpixels.array_of(tmp_path / "run" / "ids", sample), expected)


def test_killed_and_shared_by_two_processes_it_makes_the_same_bytes(
    recipe: str, dataset: Dataset, tmp_path: Path
) -> None:
    run(load_recipe(recipe), dataset, tmp_path / "whole")
    command = ("run", recipe, "--data", dataset.root, "--out", tmp_path / "cut")
    done = process(*command, program=killed_at("ids/superpixels/", "4"))
    assert done.returncode == 0, done.stderr
    made = list((tmp_path / "cut" / "ids" / "superpixels").glob("[!.]*.png"))
    assert 0 < len(made) < len(dataset.split("train"))
    done = in_two_processes(*command)
    assert done.returncode == 0, done.stderr
    cut, whole = artifacts(tmp_path / "cut"), artifacts(tmp_path / "whole")
    assert {name for name in whole if name.endswith(".png")} <= set(cut)
    assert cut == whole


def test_a_folder_is_read_as_it_is(recipe: str, dataset: Dataset, tmp_path: Path) -> None:
    published, samples = tmp_path / "published", dataset.split("train")
    written = {}
    for number, sample in enumerate(samples):
        size = read_image(sample.image).shape[:2]
        written[sample.name] = np.random.default_rng(number).integers(0, 1 << 20, size).astype(np.int32)
        write_superpixels(published / f"{sample.name}.png", written[sample.name])
    from_folder = load_recipe(recipe, [f"ids.folder={published}"])
    run(from_folder, dataset, tmp_path / "run")
    for sample in samples:
        assert np.array_equal(Superpixels.array_of(tmp_path / "run" / "ids", sample), written[sample.name])
    assert not list((tmp_path / "run").rglob("*.png")), "nothing is copied"
    (published / f"{samples[3].name}.png").unlink()
    with pytest.raises(WeaksegError, match=f"{samples[3].name}.png"):
        run(from_folder, dataset, tmp_path / "other")


def test_weights_that_are_given_once_are_those_of_superpixels_too(recipe: str) -> None:
    for start, expected in (("null", None), ("imagenet", "file.pth")):
        stage = with_weights(load_recipe(recipe, [f"ids.backbone.weights={start}"]), "file.pth").stages["ids"]
        assert isinstance(stage, Superpixels)
        assert stage.backbone is not None
        assert stage.backbone.weights == expected


def test_regions_beside_the_images_are_read_where_they_are(recipe: str, dataset: Dataset, tmp_path: Path) -> None:
    beside = load_recipe(recipe, ["ids.beside=regions"])
    run(beside, dataset, tmp_path / "made")
    sample = dataset.split("train")[0]
    assert Superpixels.array_of(tmp_path / "made" / "ids", sample).max() == 5
    for number, one in enumerate(dataset.split("train")):
        size = read_image(one.image).shape[:2]
        values = np.random.default_rng(number).integers(0, 256, size).astype(np.uint8)
        write_label_map(dataset.root / "regions" / f"{one.name}.png", values)
    run(beside, dataset, tmp_path / "read")
    ids = Superpixels.array_of(tmp_path / "read" / "ids", sample)
    assert ids.dtype == np.int32
    assert np.array_equal(ids, read_label_map(dataset.root / "regions" / f"{sample.name}.png"))
    logs = {name: (tmp_path / name / "log.jsonl").read_text() for name in ("made", "read")}
    assert '"source": "made"' in logs["made"]
    assert '"source": "made"' not in logs["read"]
    (dataset.root / "regions" / f"{sample.name}.png").unlink()
    with pytest.raises(WeaksegError, match=f"{sample.name}.png"):
        run(beside, dataset, tmp_path / "other")
