"""The stages `spread` and `retrieve`: masks from an embedding; what is there already is not made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import write_tiny_voc
from weakseg.data.images import read_image, read_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.methods.store import load_model
from weakseg.pipeline.inference import Inference, predict
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import MANIFEST_NAME, PENDING_NAME, run

SMALL = "{name: small, output_stride: 8, weights: null, frozen_stages: 0}"
CHANGES = [
    *(f"{stage}.model.backbone={SMALL}" for stage in ("cam", "embedding", "classifier")),
    *(f"{stage}.augment.crop=32" for stage in ("cam", "embedding", "classifier")),
    *(f"{stage}.train={{epochs: 1, min_steps: null}}" for stage in ("cam", "embedding", "classifier")),
    *(f"{stage}.model.dimensions=4" for stage in ("embedding", "classifier")),
    *(f"{stage}.train.batch_size=2" for stage in ("cam", "embedding", "classifier")),
    "classifier.model.memory=50",
    "runtime.device=cpu",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("spread")
    write_tiny_voc(folder / "data")
    run(load_recipe("toy-spml", CHANGES), open_dataset(folder / "data"), folder / "run")
    return folder / "data", folder / "run"


def masks(root: Path, stage: str) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path) for path in sorted((root / stage / "masks").glob("*.png"))}


def test_every_image_gets_a_mask_of_its_own_classes(finished: tuple[Path, Path]) -> None:
    data, root = finished
    dataset = open_dataset(data)
    for stage in ("pseudo", "retrieved"):
        found = masks(root, stage)
        assert len(found) >= len(dataset.split("train"))
        for labels in found.values():
            assert labels.max() <= len(dataset.classes) or set(np.unique(labels[labels > 200])) == {255}


def test_masks_of_large_photographs_have_their_size(finished: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = open_dataset(finished[0])
    changes = [*CHANGES, "data.long_side=24", "classifier=null", "scores=null"]
    run(load_recipe("toy-spml", changes), dataset, tmp_path / "run")
    for stage in ("pseudo", "retrieved"):
        found = masks(tmp_path / "run", stage)
        sizes = {f"{sample.name}.png": read_image(sample.image).shape[:2] for sample in dataset.split("train")}
        assert {name: found[name].shape for name in sizes} == sizes


def test_an_interrupted_stage_goes_on_with_the_same_masks(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, root = finished
    again = tmp_path / "run"
    shutil.copytree(root, again)
    before = {}
    for stage in ("pseudo", "retrieved"):
        (again / stage / MANIFEST_NAME).rename(again / stage / PENDING_NAME)
        first, *others = sorted((again / stage / "masks").glob("*.png"))
        before[stage] = first, first.stat().st_mtime_ns
        for path in others:
            path.unlink()
    run(load_recipe("toy-spml", CHANGES), open_dataset(data), again)
    for stage, (first, kept) in before.items():
        assert first.stat().st_mtime_ns == kept
        for name, labels in masks(root, stage).items():
            np.testing.assert_array_equal(masks(again, stage)[name], labels)


def test_methods_that_cannot_spread_are_refused() -> None:
    with pytest.raises(WeaksegError, match=r"pseudo\.method.* segmenter deeplab.* spml"):
        load_recipe("toy-spml", ["pseudo.method=deeplab"])


def test_the_segmenter_must_be_of_the_same_method(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = finished
    with pytest.raises(WeaksegError, match="Give both the same method"):
        run(load_recipe("toy-spml", [*CHANGES, "pseudo.method=spml_classifier"]), open_dataset(data), tmp_path / "run")


def test_a_model_folder_holds_the_segments_that_are_retrieved(finished: tuple[Path, Path]) -> None:
    data, root = finished
    image = read_image(open_dataset(data).split("val")[0].image)
    scores = []
    for decide in ("classifier", "retrieval"):
        model = load_model(root / "classifier" / "model")
        model.network.options = model.network.options.model_copy(update={"decide": decide})
        found = predict(model, image, Inference(scales=(1.0, 0.5), mirror=True), torch.device("cpu"))
        np.testing.assert_allclose(found.scores.sum(0), 1, atol=1e-5)
        scores.append(found.scores)
    assert not np.allclose(*scores)


def test_nothing_is_retrieved_where_nothing_is_remembered(finished: tuple[Path, Path]) -> None:
    _, root = finished
    model = load_model(root / "classifier" / "model")
    model.network.state_dict()["memory_labels"].fill_(VOID)
    model.network.options = model.network.options.model_copy(update={"decide": "retrieval"})
    with pytest.raises(WeaksegError, match="remembers no segments"):
        predict(model, np.zeros((20, 20, 3), np.uint8), Inference(), torch.device("cpu"))
