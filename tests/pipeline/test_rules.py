"""What decides pseudo-masks: a threshold, the maps' own background, a method's rule, or a segmenter's predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tiny import TINY, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.images import read_image, read_label_map, write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.inference import Inference, predict
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.report.run import write_report
from weakseg.runtime import start

OWN_BACKGROUND = """
import numpy as np
import torch
from torch import nn

from weakseg.methods import base
from weakseg.ops.activation import ActivationMaps


class Same(base.Refiner):
    def __init__(self, settings, num_classes=0, *, load_weights=True):
        super().__init__(settings)
        self.weight = nn.Parameter(torch.zeros(()))

    @staticmethod
    def evidence(settings, image, maps):
        return {}

    def losses(self, batch):
        return {"nothing": self.weight.square()}

    def param_groups(self, lr):
        return [{"params": [self.weight], "lr": lr}]

    def refine(self, image, maps, options, device):
        scores = np.concatenate([np.full_like(maps.maps[:1], 0.9), maps.maps])
        return ActivationMaps(np.array([0, *maps.labels], np.int16), scores, maps.size, maps.stride)


REFINER = Same
"""
SIGNED = """
from weakseg.methods.cam import CAM


class Signed(CAM):
    def activation_maps(self, batch):
        return super().activation_maps(batch) - 0.03


LOCALISER = Signed
"""
POSITIVE = """
import numpy as np

from weakseg.labels import VOID
from weakseg.methods import base


class Positive(base.MaskRule):
    class Settings(base.Settings):
        unsure: float = 0.0

    def mask(self, item, maps, tags, num_classes):
        assert maps.signed and set(maps.labels.tolist()) == set(tags) and num_classes == 2
        scores = maps.upsampled()
        labels = np.where(scores.max(0) > 0, maps.labels[scores.argmax(0)], 0).astype(np.uint8)
        labels[np.abs(scores.max(0)) < self.settings.unsure] = VOID
        return labels


RULE = Positive
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path_factory.mktemp("rules") / "data"))


@pytest.fixture(scope="module")
def refined(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe whose maps get a background of 0.9 everywhere, and a run of it up to these."""
    folder = tmp_path_factory.mktemp("refined")
    (folder / "same.py").write_text(OWN_BACKGROUND)
    learning = {"method": str(folder / "same.py"), "maps": "maps"}
    train = {"augment": {"crop": 32}, "train": {"steps": 1, "batch_size": 2}}
    stages = {
        "same": {"kind": "refine", **learning, **train},
        "walk": {"kind": "walk", "refiner": "same", **learning},
        "decided": {"kind": "masks", "maps": "walk", "crf": None},
    }
    recipe = {"extends": "toy-cam", "name": "same", "about": "maps with a background", "stages": stages}
    (folder / "same.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    run(load_recipe(str(folder / "same.yaml"), TINY), dataset, folder / "run", lambda line: None, until="walk")
    return folder / "same.yaml", folder / "run"


def decide(refined: tuple[Path, Path], dataset: Dataset, root: Path, *changes: str) -> Path:
    """The folder of masks that are decided otherwise."""
    recipe, reused = refined
    changed = load_recipe(str(recipe), [*TINY, *changes])
    run(changed, dataset, root, lambda line: None, reuse=[reused], until="decided")
    return root / "decided"


@pytest.mark.parametrize("rule", ["auto", "own background"])
def test_maps_with_a_background_decide_against_it(
    rule: str, refined: tuple[Path, Path], dataset: Dataset, tmp_path: Path
) -> None:
    masks = decide(refined, dataset, tmp_path / "run", f"decided.rule={rule}")
    for sample in dataset.split("train"):
        maps = ActivationMaps.load(tmp_path / "run" / "walk" / "maps" / f"{sample.name}.npz")
        expected = maps.labels[maps.upsampled().argmax(0)]
        assert np.array_equal(read_label_map(masks / "masks" / f"{sample.name}.png"), expected)
    assert json.loads((masks / "threshold.json").read_text())["threshold"] is None


def test_a_threshold_takes_the_place_of_their_background(
    refined: tuple[Path, Path], dataset: Dataset, tmp_path: Path
) -> None:
    masks = decide(refined, dataset, tmp_path / "run", "decided.rule=threshold", "decided.threshold=0.5")
    for sample in dataset.split("train"):
        maps = ActivationMaps.load(tmp_path / "run" / "walk" / "maps" / f"{sample.name}.npz")
        (label,), (scores,) = maps.labels[1:], maps.upsampled()[1:]
        mask = read_label_map(masks / "masks" / f"{sample.name}.png")
        assert np.array_equal(mask, np.where(scores > 0.5, label, 0))
        assert mask.any()
    assert json.loads((masks / "threshold.json").read_text())["threshold"] == 0.5


def test_there_must_be_a_background_to_decide_against(
    refined: tuple[Path, Path], dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(WeaksegError, match='"maps" have no background'):
        decide(refined, dataset, tmp_path / "run", "decided.rule=own background", "decided.maps=maps")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("masks.options={unsure: 1}", ["masks", "options"]),
        ("masks.rule=nowhere.py", ["nowhere.py"]),
        ("masks.rule=thresold", ["thresold"]),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(change: str, said: list[str]) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe("toy-cam", [change])
    for word in said:
        assert word in str(caught.value)


def test_a_rule_reads_the_fields_it_has_and_no_others() -> None:
    with pytest.raises(WeaksegError, match=r"masks\.inputs\.kam.*cam"):
        load_recipe("toy-icd", ["masks.inputs={cam: cam_maps, kam: cam_maps}"])


def test_maps_of_any_sign_are_for_a_rule_of_their_own(dataset: Dataset, tmp_path: Path) -> None:
    root, names = tmp_path / "run", (tmp_path / "signed.py", tmp_path / "positive.py")
    for path, source in zip(names, (SIGNED, POSITIVE), strict=True):
        path.write_text(source)
    methods = [f"{key}={path}" for key, path in zip(("cam.method", "masks.rule"), names, strict=True)]
    raw = [*TINY, *methods, "maps.style=raw", "segment=null"]
    run(load_recipe("toy-cam", raw), dataset, root, lambda line: None)
    for sample in dataset.split("train"):
        maps = ActivationMaps.load(root / "maps" / "maps" / f"{sample.name}.npz")
        assert maps.signed
        assert maps.maps.min() < 0 < maps.maps.max() < 1, "not normalised"
        (label,), (scores,) = maps.labels, maps.upsampled()
        mask = read_label_map(root / "masks" / "masks" / f"{sample.name}.png")
        assert np.array_equal(mask, np.where(scores > 0, label, 0))
    assert 0 <= read_json(root / "masks" / "curve.json")["best_threshold"] <= 1, "of their positive part"
    assert write_report(root).read_text(encoding="utf-8").count("activation map: ") > 0

    said: list[str] = []
    run(load_recipe("toy-cam", [*raw, "masks.options.unsure=1.0e+9"]), dataset, root, said.append)
    assert [line for line in said if line.endswith(": running")] == ["masks: running", "scores: running"]
    assert (read_label_map(root / "masks" / "masks" / "train 0.png") == 255).all()
    with pytest.raises(WeaksegError, match='"maps" are scores of any sign'):
        run(load_recipe("toy-cam", [*raw, "masks.rule=threshold"]), dataset, root, said.append)


SELF_TRAINING = """
extends: toy-cam
name: self-training
about: a segmenter, and another that is trained on its predictions
stages:
  segment: {train: {steps: 2, epochs: null}}
  predicted: {kind: predict, segmenter: segment, inference: {scales: [1.0, 0.5], mirror: true}}
  again: {like: segment, masks: predicted, init_from: segment}
  scores:
    masks: {predictions: predicted}
    segmenters: {again: again}
"""


def test_a_segmenter_learns_from_the_predictions_of_another(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(SELF_TRAINING, encoding="utf-8")
    short = [change for change in TINY if not change.startswith("segment.train.epochs")]
    recipe, root = load_recipe(str(tmp_path / "twice.yaml"), short), tmp_path / "run"
    said: list[str] = []
    run(recipe, dataset, root, said.append)
    assert set(said) == {f"{stage}: running" for stage in recipe.stages}

    device = start(recipe.runtime).device
    first, inference = load_model(root / "segment" / "model"), Inference(scales=(1.0, 0.5), mirror=True)
    for sample in dataset.split("train"):
        expected = predict(first, read_image(sample.image), inference, device).labels
        found = read_label_map(root / "predicted" / "masks" / f"{sample.name}.png")
        assert np.mean(found != expected) < 0.01, "batches round otherwise"
    rows = json.loads((root / "scores" / "summary.json").read_text())
    assert [row["title"] for row in rows] == ["CAM", "CAM + CRF", "predictions", *["DeepLab"] * 2, *["again"] * 2]
    assert "predictions" in write_report(root).read_text(encoding="utf-8")

    # The second segmenter learns from what the stage wrote, not from anything else.
    losses = (root / "again" / "train.jsonl").read_text()
    for path in (root / "predicted" / "masks").iterdir():
        write_label_map(path, np.where(read_label_map(path) == 0, np.uint8(1), np.uint8(0)))
    run(recipe, dataset, root, lambda line: None, redo=["again"])
    first_losses = (
        json.loads(text.splitlines()[0])["loss"] for text in (losses, (root / "again" / "train.jsonl").read_text())
    )
    assert len(set(first_losses)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("predicted.segmenter=cam", "predicted.segmenter"),
        ("predicted.inference.scale=[1]", "scales"),
        ("scores.curves={predictions: predicted}", '"predicted" has no threshold curve'),
        ("masks.rule=own background", '"masks" has no threshold curve'),
    ],
)
def test_wrong_predictions_are_explained_before_anything_runs(
    change: str, said: str, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "twice.yaml").write_text(SELF_TRAINING, encoding="utf-8")
    with pytest.raises(WeaksegError) as caught:
        run(load_recipe(str(tmp_path / "twice.yaml"), [change]), dataset, tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run" / "cam").exists()
