"""Recipes: what ships is valid, changes apply, and every wrong key is named with the nearest valid one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

from tiny import write_tiny_voc
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.opening import open_dataset
from weakseg.data.simulate import simulate
from weakseg.errors import WeaksegError
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.recipe import load_recipe, shipped_recipes
from weakseg.pipeline.recipe_files import read_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.stage import Reads, Stage
from weakseg.pipeline.stages.superpixels import Superpixels
from weakseg.settings import Settings


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_a_shipped_recipe_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    path = tmp_path / "copy.yaml"
    path.write_text(recipe.as_yaml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


def test_set_changes_one_setting_and_nothing_else() -> None:
    before, after = load_recipe("cam"), load_recipe("cam", ["cam.train.epochs=2", "seed=7", "data.train=train_aug"])
    assert after.stages["cam"].train.epochs == 2
    assert (after.seed, after.data.train) == (7, "train_aug")
    assert after.stages["cam"].model_copy(update={"train": before.stages["cam"].train}) == before.stages["cam"]
    assert {k: v for k, v in after.stages.items() if k != "cam"} == {
        k: v for k, v in before.stages.items() if k != "cam"
    }


def test_set_reaches_into_what_was_null() -> None:
    recipe = load_recipe(
        "toy-cam", ["cam.augment.resize_long=[64, 96]", "cam.augment.scale_range=null", "masks.crf=null"]
    )
    assert recipe.stages["cam"].augment.resize_long == (64, 96)
    assert recipe.stages["masks"].crf is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cam.train.epoch=2", 'cam.train.epoch: unknown setting. Did you mean "epochs"?'),
        ("cam.trian.epochs=2", 'cam.trian: unknown setting. Did you mean "train"?'),
        ("cma.train.epochs=2", "--set cma.train.epochs=2: there is no stage or setting 'cma'. Did you mean \"cam\"?"),
        ("cam.train.epochs=two", "cam.train.epochs: expected a number"),
        ("cam.train.epochs", 'write it as key=value, such as "cam.train.epochs=2"'),
        ("cam.train.epochs=[1", "'[1' is not a YAML value"),
        (
            "cam.model.backbone.name=mobilnet_v2",
            'cam.model.backbone.name: there is no such backbone. Did you mean "mobil',
        ),
        ("cam.model.bakbone.name=small", 'cam.model.bakbone: unknown setting. Did you mean "backbone"?'),
        ("cam.method=camm", 'There is no localiser "camm". There are: cam'),
        (
            "masks.maps=nowhere",
            'masks.maps: there is no stage "nowhere". There are: cam, maps, masks, segment, scores.',
        ),
        ("masks.maps=scores", 'masks.maps: the stage "scores" is of kind evaluate, expected maps or walk.'),
        ("masks.maps=cam", 'masks.maps: the stage "cam" is of kind localise, expected maps or walk.'),
        (
            "segment.init_from=maps",
            'segment.init_from: the stage "maps" is of kind maps, expected adjust or localise or paste or refine',
        ),
        (
            "scores.curves={CAM: maps}",
            'scores.curves.CAM: the stage "maps" is of kind maps, expected masks or predict or retrieve or spread.',
        ),
        ("scores.segmenters.DeepLab=cam", 'scores.segmenters.DeepLab: the stage "cam" is of kind localise, expected'),
        ("masks.crf=affinity", "masks.crf: there is no such set of CRF parameters"),
        (
            "masks.kind=mask",
            'there is no stage of kind "mask". Known: adjust, confounders, evaluate, instances, localise, ',
        ),
        ("data.training=x", 'data.training: unknown setting. Did you mean "train"?'),
        ("runtime.device=gpu", 'runtime.device: expected auto, cpu or cuda (found "gpu")'),
        ("cam.augment.scale_range=[2, 1]", "cam.augment"),
    ],
)
def test_a_wrong_setting_is_explained(override: str, message: str) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe("cam", [override])
    assert message in str(caught.value)


def test_all_wrong_keys_of_a_stage_are_reported_at_once() -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe("cam", ["cam.train.epoch=2", "cam.augment.corp=3"])
    assert 'Did you mean "epochs"?' in str(caught.value)
    assert 'Did you mean "crop"?' in str(caught.value)


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(WeaksegError, match=r'There is no recipe "camm"\. Did you mean "cam"\?'):
        load_recipe("camm")
    with pytest.raises(WeaksegError, match=r"There is no recipe file nowhere\.yaml"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [", "is not valid YAML"),
        ("- a\n- b", "its top level must be a mapping"),
        ("name: x\nabout: y", "has no stages"),
        ("name: x\nabout: y\nstages: {null: {kind: maps}}", "name of a stage is text, found None"),
        ("name: x\nabout: y\nstages: {a: 3}", "a: a stage is a group of settings, found 3"),
        ("about: y\nstages: {a: {kind: evaluate}}", "name: this setting is missing"),
        ("extends: toy\nname: x\nabuot: y", 'abuot: unknown setting. Did you mean "about"?'),
        ("name: x\nabout: y\nstages: {a: {kind: localise, method: cam}}", "a.augment: this setting is missing"),
    ],
)
def test_a_broken_recipe_file_is_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(WeaksegError) as caught:
        load_recipe(str(path))
    assert message in str(caught.value)


def test_extending_changes_only_what_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: cam\nname: mine\nabout: mine\nstages: {cam: {train: {epochs: 9}}}", encoding="utf-8")
    mine, base = load_recipe(str(path)), load_recipe("cam")
    assert mine.stages["cam"].train.epochs == 9
    assert mine.stages["cam"].train.lr == base.stages["cam"].train.lr
    assert list(mine.stages) == list(base.stages)


def test_a_recipe_that_extends_itself_is_told(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"extends: {other}", encoding="utf-8")
    other.write_text(f"extends: [cam, {one}]", encoding="utf-8")
    with pytest.raises(WeaksegError, match="extends itself"):
        load_recipe(str(one))
    other.write_text("extends: {cam: 3}", encoding="utf-8")
    with pytest.raises(WeaksegError, match="expected a recipe's name"):
        load_recipe(str(one))


def test_several_recipes_are_laid_over_what_they_have_in_common() -> None:
    both, walk, localiser, cam = map(load_recipe, ("icd-irnet", "irnet", "icd", "cam"))
    assert both.stages["cam"] == localiser.stages["cam"] != cam.stages["cam"]
    assert both.stages["maps"] == localiser.stages["maps"]
    for stage in ("boundaries", "walk", "masks"):
        assert both.stages[stage] == walk.stages[stage]
    assert both.stages["segment"] == cam.stages["segment"]


def test_a_new_stage_comes_before_the_one_named_after_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: cam\nname: mine\nabout: mine\nstages:\n"
        "  first: {kind: masks, maps: maps}\n  second: {kind: masks, maps: maps}\n  segment: {masks: second}\n"
        "  last: {kind: evaluate}",
        encoding="utf-8",
    )
    assert list(load_recipe(str(path)).stages) == [
        "cam",
        "maps",
        "masks",
        "first",
        "second",
        "segment",
        "scores",
        "last",
    ]


SECOND_ROUND = """
extends: cam
name: twice
about: the cam recipe and once more
stages:
  pool: {kind: pool, masks: masks}
  again: {like: cam, kind: paste, pool: pool, train: {lr: 0.5}}
  maps_again: {like: maps, localiser: again}
  segment: {init_from: again}
"""


@pytest.fixture
def twice(tmp_path: Path) -> str:
    path = tmp_path / "twice.yaml"
    path.write_text(SECOND_ROUND, encoding="utf-8")
    return str(path)


def test_a_stage_like_another_differs_in_what_it_names(twice: str) -> None:
    stages = load_recipe(twice).stages
    assert list(stages) == ["cam", "maps", "masks", "pool", "again", "maps_again", "segment", "scores"]
    first, again = stages["cam"], stages["again"]
    other = {"kind": "paste", "pool": "pool", "paste": again.paste, "train": first.train.model_copy(update={"lr": 0.5})}
    assert dict(again) == {**dict(first), **other}
    assert stages["maps_again"] == stages["maps"].reading({"cam": "again"})


def test_a_change_of_a_stage_changes_those_that_are_like_it(twice: str) -> None:
    stages = load_recipe(twice, ["cam.model.backbone.name=resnet18", "again.train={steps: 7, lr: 0.25}"]).stages
    assert [stages[name].model["backbone"]["name"] for name in ("cam", "again")] == ["resnet18"] * 2
    assert (stages["cam"].train.epochs, stages["again"].train.epochs) == (4, None)
    assert (stages["again"].train.steps, stages["again"].train.lr) == (7, 0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("again.like=nowhere", 'again.like: there is no stage "nowhere" before it.'),
        ("again.like=scores", 'again.like: there is no stage "scores" before it.'),
        ("again.pool=masks", 'again.pool: the stage "masks" is of kind masks, expected pool.'),
        ("again.pool=pond", 'again.pool: there is no stage "pond". There are: cam, maps, masks, pool, again, '),
        ("again.polo=pool", 'again.polo: unknown setting. Did you mean "pool"?'),
        ("again.kind=localise", "again.pool: unknown setting."),
        ("maps.localiser=again", "the stages read each other in a circle: "),
        ("again.paste.variant=spin", "again.paste.variant: expected rotate, scale or rotate_blur"),
        ("pool.smallest=0.8", "smallest is larger than largest, so no object fits"),
        ("pool.largest=7", "pool.largest: expected a number of 1 or less (found 7)"),
        (
            "pool.masks=maps",
            'pool.masks: the stage "maps" is of kind maps, expected masks or predict or retrieve or spread.',
        ),
    ],
)
def test_a_wrong_second_round_is_explained(twice: str, change: str, message: str) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe(twice, [change])
    assert message in str(caught.value)


def test_stages_that_are_named_inside_of_a_group_are_read_and_renamed() -> None:
    class Group(Settings):
        source: Annotated[str, Reads("maps")]

    class Grouped(Stage):
        kind: str = "grouped"
        group: Group

    stage = Grouped(group=Group(source="maps"))
    assert [(reference.key, reference.stage) for reference in stage.references()] == [("group.source", "maps")]
    assert stage.reading({"maps": "other"}).inputs_of() == ["other"]


def test_stages_know_what_they_read() -> None:
    stages = load_recipe("cam").stages
    read = {name: stage.inputs_of() for name, stage in stages.items()}
    assert read == {
        "cam": [],
        "maps": ["cam"],
        "masks": ["maps"],
        "segment": ["cam", "masks"],
        "scores": ["masks", "segment"],
    }
    assert load_recipe("cam", ["segment.masks=null"]).stages["segment"].inputs_of() == ["cam"]
    renamed = stages["scores"].reading({"masks": "walked"})
    assert (renamed.curves, renamed.masks) == ({"CAM": "walked"}, {"CAM + CRF": "walked"})
    assert renamed.segmenters == {"DeepLab": "segment"}
    assert stages["segment"].reading({"masks": "walked"}).inputs_of() == ["cam", "walked"]


def small_and_short(name: str) -> list[str]:
    """Changes that let any recipe run on the tiny data: the small network, two updates, a crop of five cells, one
    repetition of rounds."""
    once = ["rounds.count=1"] if "rounds" in read_recipe(name) else []
    stages = load_recipe(name, once).stages.items()
    learning = {stage: settings for stage, settings in stages if isinstance(settings, Learning)}
    windows = [stage for stage, settings in learning.items() if "window" in settings.options]
    canvases = [stage for stage, settings in learning.items() if "canvas" in settings.model]
    merging = [stage for stage, settings in stages if isinstance(settings, Superpixels)]
    small = "backbone={name: small, output_stride: 8, weights: null}"
    changes = (f"model.{small}", "augment={scale_range: [0.75, 1.25], crop: 40}", "train={steps: 2, batch_size: 4}")
    return [
        "runtime.device=cpu",
        "data={}",
        *once,
        *(f"{stage}.{change}" for stage in learning for change in changes),
        *(f"{stage}.options.window=null" for stage in windows),
        *(f"{stage}.model.canvas=64" for stage in canvases),
        *(f"{stage}.{small}" for stage in merging),
    ]


def with_all_kinds_of_labels(dataset: Dataset) -> Dataset:
    """The same with tags, boxes, points and scribbles from the masks."""

    def labelled(sample: Sample) -> Sample:
        assert sample.mask is not None
        return replace(sample, labels=simulate(sample.mask.read(), np.random.default_rng(0)))

    splits = {split: list(map(labelled, samples)) for split, samples in dataset.splits.items()}
    return replace(dataset, splits=splits)


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_a_shipped_recipe_runs_to_its_scores(name: str, tmp_path: Path) -> None:
    dataset = with_all_kinds_of_labels(open_dataset(write_tiny_voc(tmp_path / "data")))
    run(load_recipe(name, small_and_short(name)), dataset, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "scores" / "summary.json").read_text())
    assert {row["split"] for row in rows} == {"score", "val"}
    assert all(0 <= row["mean_iou"] <= 1 for row in rows)
