"""Every method, ours and strangers' alike: it trains, goes on after a mishap as if nothing had happened, predicts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import weakseg
from tiny import artifacts, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.images import read_label_map, write_label_map
from weakseg.data.loading import Order
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, Point, Scribble
from weakseg.methods.base import Localiser, Refiner, Segmenter, find_method, methods
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run

STRANGERS = Path(__file__).parents[1] / "strangers"
TRAIN = {"train": {"steps": 4, "batch_size": 4}, "augment": {"scale_range": [0.75, 1.25], "crop": 40}}
BACKBONE = {"backbone": {"name": "small", "output_stride": 8, "weights": None}}
SEED = 3


@dataclass(frozen=True)
class Case:
    """A recipe for one method, and the stage that trains it."""

    stages: dict[str, Any]
    stage: str


def localiser(method: str) -> Case:
    cam = {"kind": "localise", "method": method, "model": BACKBONE, **TRAIN}
    stages = {"cam": cam, "maps": {"kind": "maps", "localiser": "cam", "scales": [1.0]}}
    if "superpixels" in find_method(Localiser, method).fields:
        stages["superpixels"] = {"kind": "superpixels", "k": 20, "min_size": 5}
        cam["inputs"] = {"superpixels": "superpixels"}
    return Case(stages, "cam")


def refiner(method: str) -> Case:
    stages = localiser("cam").stages
    model = BACKBONE if "backbone" in find_method(Refiner, method).Settings.model_fields else {}
    learn = {"kind": "refine", "method": method, "maps": "maps", "model": model, **TRAIN}
    walk = {"kind": "walk", "method": method, "refiner": "learn", "maps": "maps"}
    return Case({**stages, "learn": learn, "walk": walk, "masks": {"kind": "masks", "maps": "walk"}}, "learn")


def segmenter(method: str) -> Case:
    segment = {"kind": "segment", "method": method, "masks": None, "model": BACKBONE, **TRAIN}
    stages = {"segment": segment, "scores": {"kind": "evaluate", "segmenters": {"it": "segment"}}}
    if "window" in find_method(Segmenter, method).Options.model_fields:
        segment["options"] = {"window": None}
    if "regions" in find_method(Segmenter, method).fields:
        stages["superpixels"] = {"kind": "superpixels", "k": 20, "min_size": 5}
        segment["inputs"] = {"regions": "superpixels"}
    return Case(stages, "segment")


OURS = [
    *(pytest.param(localiser(name), id=name) for name in methods(Localiser)),
    *(pytest.param(refiner(name), id=name) for name in methods(Refiner)),
    *(pytest.param(segmenter(name), id=name) for name in methods(Segmenter)),
]
THEIRS = [
    pytest.param(localiser(str(STRANGERS / "saliency_cam.py")), id="saliency_cam.py"),
    pytest.param(refiner(str(STRANGERS / "blurring.py")), id="blurring.py"),
    pytest.param(segmenter(str(STRANGERS / "from_marks.py")), id="from_marks.py"),
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """The tiny data with points, scribbles and a folder of saliency maps."""
    root = write_tiny_voc(tmp_path / "data")
    opened = open_dataset(root)
    splits = {}
    for split, samples in opened.splits.items():
        marked = []
        for sample in samples:
            assert sample.mask is not None
            labels = sample.mask.read()
            write_label_map(root / "saliency" / f"{sample.name}.png", np.where(labels > 0, 255, 20).astype(np.uint8))
            rows, columns = np.nonzero(labels)
            points = (Point(int(labels[rows[0], columns[0]]), int(columns[0]), int(rows[0])),)
            drawn = replace(sample.labels, points=points, scribbles=(Scribble(0, ((0, 0), (20, 0))),))
            marked.append(replace(sample, labels=drawn))
        splits[split] = marked
    return replace(opened, splits=splits)


def carry_out(case: Case, dataset: Dataset, root: Path, **data: Any) -> None:
    recipe = {"name": "tried", "about": "one method", "seed": SEED, "data": data, "stages": case.stages}
    recipe["runtime"] = {"device": "cpu", "checkpoint_steps": 1}
    path = root.parent / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run(load_recipe(str(path)), dataset, root, lambda line: None)


def damaged(dataset: Dataset, batch_size: int, update: int) -> tuple[Path, bytes]:
    """Break an image that is drawn in a certain update, not before, unnoticed by anything but its decoding."""
    samples = dataset.split("train")
    path = samples[Order(len(samples), batch_size, SEED).batch(update)[0].image].image
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return path, content


def mend(path: Path, content: bytes) -> None:
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("case", [*OURS, *THEIRS])
def test_a_method_goes_on_after_a_mishap_as_if_nothing_had_happened(
    case: Case, dataset: Dataset, tmp_path: Path
) -> None:
    carry_out(case, dataset, tmp_path / "whole", val=None)
    path, content = damaged(dataset, case.stages[case.stage]["train"]["batch_size"], update=1)
    with pytest.raises(WeaksegError, match=path.name):
        carry_out(case, dataset, tmp_path / "cut", val=None)
    mend(path, content)
    carry_out(case, dataset, tmp_path / "cut", val=None)
    assert artifacts(tmp_path / "cut") == artifacts(tmp_path / "whole")


@pytest.mark.parametrize("case", [*OURS, *THEIRS])
def test_a_method_predicts(case: Case, dataset: Dataset, tmp_path: Path) -> None:
    carry_out(case, dataset, tmp_path / "run", val=None)
    for sample in dataset.split("train"):
        if case.stage == "segment":
            labels = read_label_map(tmp_path / "run" / "scores" / "predictions" / "segment" / f"{sample.name}.png")
            assert set(np.unique(labels)) <= {0, 1, 2}
        else:
            stage = "walk" if case.stage == "learn" else "maps"
            maps = ActivationMaps.load(tmp_path / "run" / stage / "maps" / f"{sample.name}.npz")
            assert set(maps.labels.tolist()) - {0} == sample.labels.present()
    if case.stage != "learn":
        model = weakseg.load(tmp_path / "run" / case.stage / "model", device="cpu")
        image = np.random.default_rng(0).integers(0, 256, (37, 45, 3), np.uint8)
        assert model.predict(image).labels.shape == (37, 45)


def test_a_strangers_rule_makes_masks(dataset: Dataset, tmp_path: Path) -> None:
    masks = {"kind": "masks", "maps": "maps", "rule": str(STRANGERS / "most_salient.py")}
    carry_out(Case({**localiser("cam").stages, "masks": masks}, "cam"), dataset, tmp_path / "run")
    for sample in dataset.split("train"):
        assert sample.mask is not None
        mask, truth = read_label_map(tmp_path / "run" / "masks" / "masks" / f"{sample.name}.png"), sample.mask.read()
        assert np.array_equal(mask == VOID, truth == 0), "the dark part is not sure"
        assert set(np.unique(mask[truth > 0])) <= sample.labels.present()


def test_a_missing_file_of_a_field_is_named_before_training(dataset: Dataset, tmp_path: Path) -> None:
    (dataset.root / "saliency" / "train 3.png").unlink()
    with pytest.raises(WeaksegError, match=r"saliency/train 3\.png"):
        carry_out(localiser(str(STRANGERS / "saliency_cam.py")), dataset, tmp_path / "run")
    assert not (tmp_path / "run" / "cam").exists()


def test_methods_of_installed_packages_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.py").write_text((STRANGERS / "saliency_cam.py").read_text())
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[weakseg.methods]\nsalient = elsewhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_method(Localiser, "salient").__name__ == "SaliencyCAM"
    assert "salient" in methods(Localiser)
    assert "salient" not in methods(Segmenter)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "LOCALISER"),
        ("LOCALISER = 3", "Localiser"),
        ("from weakseg.methods.base import Localiser\nclass Half(Localiser): pass\nLOCALISER = Half", "losses"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
    ],
)
def test_a_file_without_a_whole_method_is_explained(source: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(WeaksegError) as caught:
        find_method(Localiser, str(tmp_path / "mine.py"))
    assert said in str(caught.value)
    assert "mine.py" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "changes", "said"),
    [
        (localiser("cam"), {"inputs": {"depth": "maps"}}, ["cam.inputs.depth", "tags"]),
        (segmenter("deeplab"), {"masks": "nowhere"}, ["segment.masks", "nowhere"]),
        (localiser("cam"), {"options": {"power": 2}}, ["cam.options.power"]),
    ],
)
def test_wrong_settings_of_contracts_are_named(
    case: Case, changes: dict[str, Any], said: Sequence[str], dataset: Dataset, tmp_path: Path
) -> None:
    stages = {**case.stages, case.stage: {**case.stages[case.stage], **changes}}
    with pytest.raises(WeaksegError) as caught:
        carry_out(Case(stages, case.stage), dataset, tmp_path / "run")
    for word in said:
        assert word in str(caught.value)
