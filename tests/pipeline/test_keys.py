"""The keys of stages: what makes a finished stage be done again, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tiny import TINY, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.opening import open_dataset
from weakseg.methods.cam import CAM
from weakseg.methods.deeplab import DeepLab
from weakseg.optimisation import TrainSettings
from weakseg.pipeline.context import Context
from weakseg.pipeline.recipe import Recipe, load_recipe
from weakseg.pipeline.run import parts, stage_keys
from weakseg.pipeline.stage import Stage
from weakseg.pipeline.stages.localise import Localise
from weakseg.pipeline.stages.maps import Maps
from weakseg.pipeline.stages.masks import Masks
from weakseg.runtime import start

STRANGERS = Path(__file__).parents[1] / "strangers"
Keys = Callable[[Recipe], Mapping[str, str]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path_factory.mktemp("keys") / "data"))


@pytest.fixture
def keys(dataset: Dataset, tmp_path: Path) -> Keys:
    """The keys of a recipe's stages on the tiny data."""

    def of(recipe: Recipe) -> Mapping[str, str]:
        fabric, samples = start(recipe.runtime), parts(dataset, recipe)
        return stage_keys(Context(recipe.stages, dataset, recipe.seed, recipe.runtime, fabric, tmp_path, *samples))

    return of


def toy(*changes: str) -> Recipe:
    return load_recipe("toy-cam", [*TINY, *changes])


def with_stage(recipe: Recipe, name: str, stage: Stage) -> Recipe:
    return replace(recipe, stages={**recipe.stages, name: stage})


def differing(one: Mapping[str, str], two: Mapping[str, str]) -> list[str]:
    return [name for name in one if one[name] != two[name]]


class LaterMaps(Maps):
    novelty: int = 3


class LaterTrainSettings(TrainSettings):
    novelty: int = 3


class LaterLocalise(Localise):
    train: LaterTrainSettings


def test_a_default_that_is_written_out_changes_no_key(keys: Keys) -> None:
    written = toy("maps.stride=4", "cam.train.momentum=0.9", "cam.model.map_power=1.0", "masks.threshold=auto")
    assert keys(written) == keys(toy())


def test_updates_that_few_images_need_change_a_key_only_where_there_are_too_few(keys: Keys) -> None:
    enough, more = "cam.train.min_steps=4", "cam.train.min_steps=5"  # 2 epochs of 2 batches
    assert keys(toy(enough)) == keys(toy())
    assert differing(keys(toy()), keys(toy(more)))[0] == "cam"
    assert keys(toy(more)) != keys(toy("cam.train.min_steps=6"))


def test_a_setting_that_is_added_changes_keys_by_other_values_than_its_default_only(keys: Keys) -> None:
    recipe = toy()
    maps = recipe.stages["maps"].model_dump()
    assert keys(with_stage(recipe, "maps", LaterMaps(**maps))) == keys(recipe)
    changed = keys(with_stage(recipe, "maps", LaterMaps(**maps, novelty=4)))
    assert differing(keys(recipe), changed) == ["maps", "masks", "segment", "scores"]


def test_so_does_one_that_is_added_to_a_group_or_to_a_method(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    class LaterSettings(CAM.Settings):
        novelty: int = 3

    recipe, before = toy(), keys(toy())
    cam = recipe.stages["cam"].model_dump()
    assert keys(with_stage(recipe, "cam", LaterLocalise(**cam))) == before
    cam["train"]["novelty"] = 4
    assert "cam" in differing(before, keys(with_stage(recipe, "cam", LaterLocalise(**cam))))
    monkeypatch.setattr(CAM, "Settings", LaterSettings)
    assert keys(toy()) == before
    assert "cam" in differing(before, keys(toy("cam.model.novelty=4")))


@pytest.mark.parametrize(
    ("owner", "changed"),
    [
        (Localise, ["cam", "maps", "masks", "segment", "scores"]),
        (CAM, ["cam", "maps", "masks", "segment", "scores"]),
        (Masks, ["masks", "segment", "scores"]),
        (DeepLab, ["segment", "scores"]),
    ],
)
def test_a_new_version_of_a_stage_or_a_method_is_carried_out_anew(
    owner: type[Stage] | type[CAM], changed: list[str], keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(toy())
    monkeypatch.setattr(owner, "version", owner.version + 1)
    assert differing(before, keys(toy())) == changed


COMMENTED = '''
"""A rule."""
# Why it is so.
import numpy as np

from weakseg.methods import base


class Rule(base.MaskRule):
    """Everything is background."""

    def mask(self, item, maps, tags, num_classes):
        """The label map."""
        return np.zeros(item["image"].shape[:2], np.uint8)  # as simple as that


RULE = Rule
'''
PLAIN = """
import numpy as np
from weakseg.methods import base

class Rule(base.MaskRule):
    def mask(self, item, maps, tags, num_classes):
        return np.zeros(item["image"].shape[:2], np.uint8)

RULE = Rule
"""


def test_a_method_under_development_is_carried_out_anew_when_its_code_changes(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text(COMMENTED)
    recipe = toy(f"masks.rule={path}")
    before = keys(recipe)
    path.write_text(PLAIN)
    assert keys(recipe) == before, "comments, docstrings and empty lines do nothing"
    path.write_text(PLAIN.replace("zeros", "ones"))
    assert differing(before, keys(recipe)) == ["masks", "segment", "scores"]


def test_where_the_file_of_a_method_lies_does_not_matter(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rule.py").write_text(PLAIN)
        (tmp_path / folder / "own.py").write_text("from weakseg.methods.cam import CAM\nLOCALISER = CAM\n")
    monkeypatch.chdir(tmp_path)
    here = toy("masks.rule=here/rule.py", "cam.method=here/own.py")
    there = toy(f"masks.rule={tmp_path}/there/rule.py", f"cam.method={tmp_path}/there/own.py")
    monkeypatch.chdir(tmp_path.parent)
    assert keys(here) == keys(there)
