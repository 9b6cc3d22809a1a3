"""The stages confounders and adjust: rounds of a classifier that sees the contexts of the round before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import weakseg
from tiny import TINY, artifacts, write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.images import read_image, read_label_map, write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.methods.conta import Confounders
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.report.run import write_report

PSEUDO = "rounds.changes.confounders.masks=previous/masks"
# The segmenter of two updates finds nothing yet; the pseudo-masks show something.
SHORT = (*TINY, "rounds.count=1", "segment.train.epochs=1", "rounds.changes.confounders.grid=[4, 5]", PSEUDO)
PLAIN = "rounds.changes.cam.adjust.context=none"


def silent(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path_factory.mktemp("conta") / "data"))


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("conta") / "run"
    run(load_recipe("toy-conta", SHORT), dataset, out, silent)
    return out


def changed(finished: Path, dataset: Dataset, out: Path, *changes: str) -> list[str]:
    """Carry out the finished run with changes in a copy; the lines that are announced."""
    shutil.copytree(finished, out)
    lines: list[str] = []
    run(load_recipe("toy-conta", [*SHORT, *changes]), dataset, out, lines.append)
    return lines


def part(root: Path, *stages: str) -> dict[str, bytes]:
    """The files of some stages by the names that they have in the first round."""
    kept = {name.removeprefix("round-1/"): data for name, data in artifacts(root).items() if name.startswith(stages)}
    return {name: data for name, data in kept.items() if "scores" not in name}


def test_without_a_context_a_round_is_the_base_recipe_to_the_last_byte(
    finished: Path, dataset: Dataset, tmp_path: Path
) -> None:
    changed(finished, dataset, tmp_path / "run", PLAIN)
    first, again = (
        part(tmp_path / "run", *(f"{number}{stage}/" for stage in ("cam", "maps", "masks", "segment")))
        for number in ("", "round-1/")
    )
    assert len(first) > 20
    assert first == again
    assert part(finished, "round-1/cam/") != part(finished, "cam/")


def test_the_first_round_is_taken_from_a_finished_run_of_the_base_recipe(dataset: Dataset, tmp_path: Path) -> None:
    base = [change for change in SHORT if not change.startswith("rounds")]
    run(load_recipe("toy-cam", base), dataset, tmp_path / "base", silent, until="masks")
    lines: list[str] = []
    recipe, reuse = load_recipe("toy-conta", SHORT), [tmp_path / "base"]
    run(recipe, dataset, tmp_path / "run", lines.append, reuse=reuse, until="round-1/confounders")
    taken = [line.partition(":")[0] for line in lines if "taken from" in line]
    assert taken == ["cam", "maps", "masks"]


def test_each_round_is_told_by_the_segmenter_of_the_one_before() -> None:
    stages = load_recipe("toy-conta", ["rounds.count=2"]).stages
    assert stages["round-2/predicted"].inputs_of() == ["round-1/segment"]
    assert stages["round-2/confounders"].inputs_of() == ["round-2/predicted"]
    assert stages["round-2/cam"].inputs_of() == ["round-2/confounders"]
    assert stages["round-2/scores"].segmenters == {"DeepLab, round 2": "round-2/segment"}


def test_confounders_are_the_average_masks_of_the_training_images(finished: Path, dataset: Dataset) -> None:
    found = Confounders.load(finished / "round-1" / "confounders" / "confounders.npz", dataset.classes)
    samples = dataset.split("train")
    assert found.images == len(samples)
    for label, count in ((1, 4), (2, 4)):
        shares = []
        for sample in samples:
            if label in sample.labels.present():
                mask = read_label_map(finished / "masks" / "masks" / f"{sample.name}.png")
                inside = torch.from_numpy((mask == label).astype(np.float64))[None]
                shares.append(F.adaptive_avg_pool2d(inside, (4, 5))[0].numpy())
        np.testing.assert_allclose(found.confounder[label - 1], np.mean(shares, axis=0), atol=1e-6)
        assert found.count[label - 1] == count


def test_the_localiser_keeps_what_it_was_adjusted_by(finished: Path, dataset: Dataset) -> None:
    network = load_model(finished / "round-1" / "cam" / "model").network
    found = Confounders.load(finished / "round-1" / "confounders" / "confounders.npz", dataset.classes)
    assert np.array_equal(network.conta.confounder.numpy(), found.confounder.reshape(2, -1))
    assert network.conta.context_weight[0].abs().max() > 0, "it has learned to read the context"
    assert network.conta.w1.shape == (2, 20)


def test_such_a_localiser_needs_its_run_and_the_segmenter_does_not(finished: Path, dataset: Dataset) -> None:
    image = read_image(dataset.split("val")[0].image)
    with pytest.raises(WeaksegError, match="context"):
        weakseg.load(finished / "round-1" / "cam" / "model", device="cpu").predict(image)
    assert weakseg.load(finished, device="cpu").predict(image).labels.shape == image.shape[:2]


@pytest.mark.parametrize(
    "changes",
    [
        ["rounds.changes.cam.adjust={context: mask, position: dense}"],
        ["rounds.changes.cam.adjust={position: 3, attention: uniform, prior: frequency, scale: 2}"],
    ],
    ids=["mask", "uniform"],
)
def test_the_controls_of_the_paper_run(finished: Path, dataset: Dataset, tmp_path: Path, changes: list[str]) -> None:
    lines = changed(finished, dataset, tmp_path / "run", *changes)
    assert "round-1/cam: running" in lines
    assert part(tmp_path / "run", "round-1/maps/") != part(finished, "round-1/maps/")


@pytest.mark.parametrize("method", ["seam", "icd"])
def test_other_localisers_see_the_context_too(finished: Path, dataset: Dataset, tmp_path: Path, method: str) -> None:
    text = f"""
extends: toy-cam
name: other
about: another localiser with the context of the pseudo-masks
stages:
  segment: null
  scores: null
  superpixels: {{kind: superpixels, k: 20, min_size: 5}}
  confounders: {{kind: confounders, masks: masks, grid: [4, 5]}}
  adjusted:
    like: cam
    kind: adjust
    method: {method}
    confounders: confounders
    train: {{clip_norm: 1.0}}
    {"inputs: {superpixels: superpixels}" if method == "icd" else ""}
  adjusted_maps: {{like: maps, localiser: adjusted}}
"""
    (tmp_path / "other.yaml").write_text(text, encoding="utf-8")
    short = [change for change in TINY if not change.startswith("segment")]
    recipe = load_recipe(str(tmp_path / "other.yaml"), short)
    run(recipe, dataset, tmp_path / "run", silent, reuse=[finished])
    for sample in dataset.split("train"):
        maps = ActivationMaps.load(tmp_path / "run" / "adjusted_maps" / "maps" / f"{sample.name}.npz")
        assert set(maps.labels.tolist()) == sample.labels.present()


def test_the_report_follows_the_rounds(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    _, _, rounds = page.partition(">Rounds</h2>")
    assert "Confounders (round-1/confounders)" in rounds
    assert "kettle: 4 images" in rounds
    assert "Contexts of images (round-1/cam)" in rounds
    assert rounds.count("kettle 0.") == 16, "weights in the caption and the description of each image"
    assert "Activation maps through the rounds" in rounds
    assert "Mean IoU over rounds" in rounds


def test_a_class_without_images_is_told_and_gets_no_attention(dataset: Dataset, tmp_path: Path) -> None:
    splits = {split: [s for s in samples if s.labels.present() == {1}] for split, samples in dataset.splits.items()}
    run(load_recipe("toy-conta", SHORT), replace(dataset, splits=splits), tmp_path / "run", silent, until="round-1/cam")
    network = load_model(tmp_path / "run" / "round-1" / "cam" / "model").network
    weights = network.conta.attention(torch.rand(3, 4, 5))
    assert torch.equal(weights, torch.tensor([[1.0, 0.0]]).expand(3, -1))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [event["classes_without"] for event in log if event["event"] == "confounders"] == [["spoon"]]
    assert "Without images, and so without a confounder: spoon." in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize("stage", ["confounders", "cam"])
def test_a_mask_that_does_not_fit_is_an_error_that_names_the_image(
    finished: Path, dataset: Dataset, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    write_label_map(out / "masks" / "masks" / "train 2.png", np.zeros((7, 9), np.uint8))
    shutil.rmtree(out / "round-1" / stage)
    with pytest.raises(WeaksegError, match=r"train 2\.png.*9×7 .*44×36"):
        run(load_recipe("toy-conta", SHORT), dataset, out, silent)
    (out / "masks" / "masks" / "train 2.png").unlink()
    with pytest.raises(WeaksegError, match=r"train 2\.png"):
        run(load_recipe("toy-conta", SHORT), dataset, out, silent)


def test_confounders_of_other_classes_are_refused(finished: Path, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    path = out / "round-1" / "confounders" / "confounders.npz"
    Confounders.load(path, dataset.classes).save(path, Classes(["kettle", "fork"]))
    shutil.rmtree(out / "round-1" / "cam")
    with pytest.raises(WeaksegError, match="fork"):
        run(load_recipe("toy-conta", SHORT), dataset, out, silent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("rounds.changes.cam.adjust.position=6", ["round-1/cam.adjust.position", "dense"]),
        ("rounds.changes.cam.adjust.contxt=mask", ["round-1/cam.adjust.contxt", "context"]),
        ("rounds.changes.confounders.grid=[0, 3]", ["round-1/confounders.grid"]),
        ("rounds.changes.cam.confounders=predicted", ["round-1/cam.confounders", "confounders"]),
    ],
)
def test_wrong_settings_are_named(change: str, said: list[str]) -> None:
    with pytest.raises(WeaksegError) as caught:
        load_recipe("toy-conta", [*SHORT, change])
    for word in said:
        assert word in str(caught.value)
