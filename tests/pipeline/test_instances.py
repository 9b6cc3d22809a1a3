"""The stage of instances on data whose instances are known, from the recipe to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tiny import write_tiny_voc
from weakseg.data.images import write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.ops.average_precision import AveragePrecision
from weakseg.ops.instances import Instances
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.refining import with_refinement, without_refinement
from weakseg.pipeline.run import run
from weakseg.report.run import write_report

LEARNING = """
    model: {backbone: {name: small, output_stride: 8, weights: null}}
    augment: {crop: 40}
    train: {epochs: null, steps: 2, batch_size: 2}
"""
RECIPE = f"""
extends: irnet-instances
name: short
about: nothing but what instances need
runtime: {{device: cpu}}
stages:
  cam: {LEARNING}
  boundaries: {LEARNING.replace("model: {", "model: {canvas: 0, ")}
  cam_masks: null
  walk: null
  walked: null
  masks: null
  segment: null
  scores: null
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def with_objects(root: Path) -> Path:
    """The tiny data with one object in each training picture: everything that is not background."""
    write_tiny_voc(root, train=4, val=1)
    for sample in open_dataset(root).split("train"):
        assert sample.mask is not None
        write_label_map(root / "SegmentationObject" / f"{sample.name}.png", np.minimum(sample.mask.read(), 1))
    return root


def test_instances_are_made_measured_and_shown(recipe: str, tmp_path: Path) -> None:
    dataset, out = open_dataset(with_objects(tmp_path / "data")), tmp_path / "run"
    lines: list[str] = []
    run(load_recipe(recipe), dataset, out, lines.append)
    assert "instances: running" in lines

    counted = AveragePrecision(3)
    for sample in dataset.split("train"):
        found = Instances.load(out / "instances" / "instances" / f"{sample.name}.npz")
        truth = sample.instances()
        assert truth is not None
        assert truth.labels.tolist() == list(sample.labels.present())
        assert set(found.labels.tolist()) <= set(sample.labels.present())
        assert found.masks.sum(0).max(initial=0) <= 1, "no pixel is in two of them"
        counted.update(truth, found, sample.name)
    scores = json.loads((out / "instances" / "average_precision.json").read_text())
    assert scores == {"classes": ["background", "kettle", "spoon"], **counted.to_dict()}
    assert scores["instances"] == [0, 2, 2]

    page = write_report(out).read_text(encoding="utf-8")
    assert "instances: average precision of instances in percent, on 4 images" in page
    assert page.count("<figcaption>instances: ") == 4

    lines.clear()
    run(load_recipe(recipe, ["instances.options.still=1"]), dataset, out, lines.append)
    assert [line for line in lines if line.endswith("running")] == ["instances: running"], "trains nothing anew"


def test_the_example_of_the_documentation_makes_the_instances_of_the_run(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(with_objects(tmp_path / "data"))
    run(load_recipe(recipe), dataset, tmp_path / "runs" / "photos")
    sample = dataset.split("train")[2]
    shutil.copy(sample.image, tmp_path / "photo.jpg")
    text = (Path(__file__).parents[2] / "docs" / "irnet.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0].replace('"dog"', '"kettle"')
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    made = Instances.load(Path("photo.npz"))
    of_run = Instances.load(tmp_path / "runs" / "photos" / "instances" / "instances" / f"{sample.name}.npz")
    assert made.labels.tolist() == of_run.labels.tolist()
    assert np.mean(made.masks != of_run.masks) < 0.02, "their maps are rounded to float16"


def test_a_change_of_the_objects_is_noticed(recipe: str, tmp_path: Path) -> None:
    root, lines = with_objects(tmp_path / "data"), list[str]()
    run(load_recipe(recipe), open_dataset(root), tmp_path / "run")
    write_label_map(root / "SegmentationObject" / "train 0.png", np.zeros((36, 44), np.uint8))
    run(load_recipe(recipe), open_dataset(root), tmp_path / "run", lines.append)
    assert "instances: running" in lines
    scores = json.loads((tmp_path / "run" / "instances" / "average_precision.json").read_text())
    assert scores["instances"] == [0, 1, 2]


def test_objects_of_another_size_are_refused(tmp_path: Path) -> None:
    root = with_objects(tmp_path / "data")
    write_label_map(root / "SegmentationObject" / "train 0.png", np.zeros((36, 45), np.uint8))
    (sample, *_) = open_dataset(root).split("train")
    with pytest.raises(WeaksegError, match=r"train 0\.png has 45×36 pixels, the mask of train 0 has 44×36"):
        sample.instances()


def test_data_without_objects_have_no_scores(recipe: str, tmp_path: Path) -> None:
    dataset, out = open_dataset(write_tiny_voc(tmp_path / "data", train=2, val=1)), tmp_path / "run"
    run(load_recipe(recipe), dataset, out)
    assert all(sample.instances() is None for sample in dataset.split("train"))
    assert len(list((out / "instances" / "instances").iterdir())) == 2
    assert not (out / "instances" / "average_precision.json").exists()
    assert "average precision" not in write_report(out).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("instances.method=affinitynet", "cannot use the refiner affinitynet. It can use irnet"),
        ("instances.options.stil=1", 'instances.options.stil: unknown setting. Did you mean "still"?'),
        ("instances.refiner=maps", 'the stage "maps" is of kind maps, expected refine'),
    ],
)
def test_wrong_settings_are_explained(change: str, message: str) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe("irnet-instances", [change])
    assert message in str(caught.value)


def test_a_refinement_takes_its_instances_along() -> None:
    cam, refining = load_recipe("cam"), load_recipe("irnet-instances")
    both = with_refinement(cam, refining)
    assert both.stages["instances"].inputs_of() == ["boundaries", "maps"]
    assert "instances" not in without_refinement(both).stages
    assert "instances" not in without_refinement(refining).stages
