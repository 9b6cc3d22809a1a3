"""The stages refine and walk with the smallest refiner there can be, added as one new file of methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weakseg.methods
from tiny import write_tiny_voc
from weakseg.data.images import read_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.files import read_npz
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import adaptive_threshold, with_own_background
from weakseg.pipeline.choosing import MOST
from weakseg.pipeline.predict import find_model
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report.run import write_report

METHOD = '''
import numpy as np
import torch
from torch import nn

from weakseg.methods import base
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.fields import ImageField


class Nearest(base.Refiner):
    """Learns the mean colour; its background is half of what the maps leave."""

    class Settings(base.Settings):
        backbone: dict = {}

    class Options(base.Settings):
        share: float = 0.5

    fields = {"mean": ImageField("whole"), "labels": ImageField("whole")}

    def __init__(self, settings, num_classes=0, *, load_weights=True):
        super().__init__(settings)
        self.colour = nn.Parameter(torch.zeros(3))

    @staticmethod
    def evidence(settings, image, maps):
        return {"mean": image.mean((0, 1)), "labels": maps.labels}

    @classmethod
    def prepare(cls, settings, view):
        return {"image": view["image"], "mean": view["mean"].astype(np.float32)}

    def losses(self, batch):
        return {"colour": (batch["mean"] / 255 - self.colour).square().mean()}

    def param_groups(self, lr):
        return [{"params": [self.colour], "lr": lr}]

    def refine(self, image, maps, options, device):
        background = options.share * (1 - maps.maps.max(0, keepdims=True))
        labels = np.array([0, *maps.labels], np.int16)
        return ActivationMaps(labels, np.concatenate([background, maps.maps]), maps.size, maps.stride)


REFINER = Nearest
'''

RECIPE = """
extends: toy-cam
name: nearest
about: a refiner of one parameter
stages:
  segment: null
  scores: null
  nearest:
    kind: refine
    method: nearest
    maps: maps
    augment: {crop: 32}
    train: {steps: 3, batch_size: 2}
  walk: {kind: walk, method: nearest, refiner: nearest, maps: maps}
  walked: {kind: masks, maps: walk, crf: null}
  measured: {kind: evaluate, curves: {CAM: masks}, masks: {Walk: walked}}
"""

SHORT = (
    "runtime.device=cpu",
    "cam.augment.crop=32",
    "cam.train={steps: 2, batch_size: 4}",
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe of a method whose file is added to the package for this test."""
    added = tmp_path / "added"
    added.mkdir()
    (added / "nearest.py").write_text(METHOD, encoding="utf-8")
    monkeypatch.setattr(weakseg.methods, "__path__", [*weakseg.methods.__path__, str(added)])
    path = tmp_path / "nearest.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    yield path
    sys.modules.pop("weakseg.methods.nearest", None)
    vars(weakseg.methods).pop("nearest", None)


def test_a_refiner_is_one_file_and_one_recipe(recipe: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(write_tiny_voc(tmp_path / "data")), tmp_path / "run"
    run(load_recipe(str(recipe), SHORT), dataset, out)

    sample = dataset.split("train")[0]
    assert set(read_npz(out / "nearest" / "evidence" / f"{sample.name}.npz")) == {"mean", "labels"}
    assert load_model(out / "nearest" / "model").network.colour.abs().sum() > 0

    before = ActivationMaps.load(out / "maps" / "maps" / f"{sample.name}.npz")
    after = ActivationMaps.load(out / "walk" / "maps" / f"{sample.name}.npz")
    assert not before.has_background
    assert after.has_background
    assert after.labels.tolist() == [0, *before.labels]
    scores = after.upsampled()
    mask = read_label_map(out / "walked" / "masks" / f"{sample.name}.png")
    assert np.array_equal(mask, after.labels[scores.argmax(0)]), "the maps' own background decides, no threshold"
    assert json.loads((out / "walked" / "threshold.json").read_text())["threshold"] is None
    assert not (out / "walked" / "curve.json").exists()
    rows = json.loads((out / "measured" / "summary.json").read_text())
    assert [row["title"] for row in rows] == ["CAM", "Walk"]

    page = write_report(out).read_text(encoding="utf-8")
    assert "walked map: kettle" in page
    assert "walked map: background" not in page
    assert "walked used no background score (the maps have a background of their own)" in page

    assert find_model(out).kind == "localiser", "a refiner alone predicts nothing"
    with pytest.raises(WeaksegError, match="holds the refiner nearest"):
        find_model(out / "nearest" / "model")


@pytest.mark.parametrize(("growth", "kept"), [("1.1", True), ("1000", False), ("null", False)])
def test_a_walk_that_floods_leaves_the_maps(recipe: Path, tmp_path: Path, growth: str, kept: bool) -> None:
    """Against no background at all, all of an image is foreground."""
    dataset, out = open_dataset(write_tiny_voc(tmp_path / "data")), tmp_path / "run"
    changes = (*SHORT, "walk.options.share=0", f"walk.most_growth={growth}", "data.score=null")
    run(load_recipe(str(recipe), changes), dataset, out, until="walk")
    for sample in dataset.split("train"):
        maps, walked = read_maps(out / "maps", sample), read_maps(out / "walk", sample)
        still = with_own_background(maps)
        assert walked.labels.tolist() == [0, *maps.labels]
        assert np.array_equal(walked.maps[1:], still.maps[1:].astype(np.float16))
        assert np.allclose(walked.maps[0], still.maps[0], atol=1e-3) == kept


@pytest.mark.parametrize("threshold", ["0.3", "auto", "adaptive"])
def test_a_walk_takes_the_threshold_that_was_chosen_for_its_maps(recipe: Path, tmp_path: Path, threshold: str) -> None:
    """Seen where the maps are left as they are. Masks to choose on are those of the data."""
    dataset, out = open_dataset(write_tiny_voc(tmp_path / "data", train=MOST + 1)), tmp_path / "run"
    leaving = ("walk.options.share=0", "walk.most_growth=1", "walk.masks=masks", f"masks.threshold={threshold}")
    run(load_recipe(str(recipe), [*SHORT, *leaving, "masks.crf=null"]), dataset, out, until="walk")
    chosen = json.loads((out / "masks" / "threshold.json").read_text())["threshold"]
    assert isinstance(chosen, float) == (threshold != "adaptive")
    for sample in dataset.split("train")[:4]:
        maps = read_maps(out / "maps", sample)
        expected = chosen if isinstance(chosen, float) else adaptive_threshold(maps)
        assert np.allclose(read_maps(out / "walk", sample).maps[0], expected, atol=1e-3)


def test_masks_by_a_rule_of_a_method_leave_the_walk_to_the_maps(recipe: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(write_tiny_voc(tmp_path / "data")), tmp_path / "run"
    rule = f"masks.rule={Path(__file__).parents[1] / 'strangers' / 'most_salient.py'}"
    changes = (*SHORT, "walk.options.share=0", "walk.most_growth=1", "walk.masks=masks", rule)
    run(load_recipe(str(recipe), changes), dataset, out, until="walk")
    assert not (out / "masks" / "threshold.json").exists()
    sample = dataset.split("train")[0]
    expected = adaptive_threshold(read_maps(out / "maps", sample))
    assert np.allclose(read_maps(out / "walk", sample).maps[0], expected, atol=1e-3)


def test_a_change_of_the_walk_trains_nothing_anew(recipe: Path, tmp_path: Path) -> None:
    dataset, out = open_dataset(write_tiny_voc(tmp_path / "data")), tmp_path / "run"
    lines: list[str] = []
    run(load_recipe(str(recipe), SHORT), dataset, out)
    run(load_recipe(str(recipe), [*SHORT, "walk.options.share=0.25"]), dataset, out, lines.append)
    assert [line for line in lines if line.endswith("running")] == [
        "walk: running",
        "walked: running",
        "measured: running",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("walk.options.shaer=1", 'walk.options.shaer: unknown setting. Did you mean "share"?'),
        ("walk.method=nearer", 'There is no refiner "nearer"'),
        ("nearest.model.backbon={}", 'nearest.model.backbon: unknown setting. Did you mean "backbone"?'),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(recipe: Path, change: str, message: str) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe(str(recipe), [change])
    assert message in str(caught.value)


def test_a_curve_of_maps_with_a_background_is_refused(recipe: Path, tmp_path: Path) -> None:
    dataset = open_dataset(write_tiny_voc(tmp_path / "data"))
    wrong: Any = [*SHORT, "measured.curves={Walk: walked}", "measured.masks={}"]
    with pytest.raises(WeaksegError, match='"walked" has no threshold curve'):
        run(load_recipe(str(recipe), wrong), dataset, tmp_path / "run")


def test_a_walk_of_another_method_than_its_refiner_is_refused(recipe: Path, tmp_path: Path) -> None:
    dataset = open_dataset(write_tiny_voc(tmp_path / "data"))
    with pytest.raises(
        WeaksegError, match=r'has the method irnet, but its refiner "nearest" trains nearest\. Give both'
    ):
        run(load_recipe(str(recipe), [*SHORT, "walk.method=irnet"]), dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "cam").exists()
