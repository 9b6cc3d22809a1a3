"""Runs: what is skipped, what is done again, what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tiny import TINY, write_tiny_voc
from weakseg.data.images import file_stamp, read_label_map, write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.files import locked
from weakseg.labels import WeakLabels
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.choosing import MOST
from weakseg.pipeline.predict import find_model
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import LOCK_NAME, run
from weakseg.report.run import write_report

STAGES = ["cam", "maps", "masks", "segment", "scores"]
Done = dict[str, str]


def carried_out(data: Path, root: Path, *overrides: str, reuse: Sequence[Path] = (), redo: Sequence[str] = ()) -> Done:
    """Run the recipe toy-cam; what was said of each stage."""
    said: list[str] = []
    run(load_recipe("toy-cam", [*TINY, *overrides]), open_dataset(data), root, said.append, reuse=reuse, redo=redo)
    return dict(line.split(": ", 1) for line in said)


def skipped(done: Done) -> list[str]:
    return [stage for stage, words in done.items() if words == "finished before, skipped"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set and a complete run on it. Tests that change anything work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_tiny_voc(folder / "data")
    assert list(carried_out(data, folder / "run")) == STAGES
    return data, folder / "run"


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path, copy_tree: Callable[[Path, Path], Path]) -> tuple[Path, Path]:
    data, root = finished
    return data, copy_tree(root, tmp_path / "run")


def test_every_stage_leaves_its_artifact(finished: tuple[Path, Path]) -> None:
    data, root = finished
    dataset = open_dataset(data)
    for sample in dataset.split("train"):
        with Image.open(sample.image) as image:
            size = (image.height, image.width)
        maps = ActivationMaps.load(root / "maps" / "maps" / f"{sample.name}.npz")
        assert set(maps.labels.tolist()) == sample.labels.present()
        assert maps.size == size
        mask = read_label_map(root / "masks" / "masks" / f"{sample.name}.png")
        assert mask.shape == size
        assert set(np.unique(mask).tolist()) <= {0, *sample.labels.present()}
    for sample in (*dataset.split("train"), *dataset.split("val")):
        prediction = read_label_map(root / "scores" / "predictions" / "segment" / f"{sample.name}.png")
        assert set(np.unique(prediction).tolist()) <= {0, 1, 2}
    rows = json.loads((root / "scores" / "summary.json").read_text())
    assert [(row["title"], row["split"], row["images"]) for row in rows] == [
        ("CAM", "score", 8),
        ("CAM + CRF", "score", 8),
        ("DeepLab", "score", 8),
        ("DeepLab", "val", 4),
    ]
    assert all(0 <= row["mean_iou"] <= 1 for row in rows)
    assert not list(root.rglob("checkpoint*"))
    assert not list(root.rglob(".*.writing"))


def test_activation_on_contexts_is_measured(finished: tuple[Path, Path]) -> None:
    data, root = finished
    inside, total, area, pixels, count = 0.0, 0.0, 0, 0, 0
    for sample in open_dataset(data).split("train")[2:]:
        maps = ActivationMaps.load(root / "maps" / "maps" / f"{sample.name}.npz")
        (activation,) = maps.upsampled().astype(np.float64)
        contexts = read_label_map(data / "ContextMask" / f"{sample.name}.png")
        assert set(np.unique(contexts)) == {0, *sample.labels.present()}
        inside, total = inside + activation[contexts > 0].sum(), total + activation.sum()
        area, pixels, count = area + np.count_nonzero(contexts), pixels + contexts.size, count + 1
    rows = json.loads((root / "scores" / "summary.json").read_text())
    measured = rows[0]["context"]
    assert 0 < measured["share"] == pytest.approx(inside / total)
    assert measured["area"] == area / pixels
    assert measured["maps"] == count == 6
    assert not any("context" in row for row in rows[1:])


def test_without_context_masks_the_share_is_not_measured(copied: tuple[Path, Path], tmp_path: Path) -> None:
    data, root = copied
    moved = Path(shutil.copytree(data, tmp_path / "data"))
    shutil.rmtree(moved / "ContextMask")
    assert skipped(carried_out(moved, root)) == ["cam", "maps", "masks", "segment"]
    assert not any("context" in row for row in json.loads((root / "scores" / "scores.json").read_text())["rows"])


def test_a_second_run_does_nothing(copied: tuple[Path, Path]) -> None:
    data, root = copied
    assert skipped(carried_out(data, root)) == STAGES


@pytest.mark.parametrize(
    ("override", "still_good"),
    [
        ("runtime.checkpoint_steps=7", STAGES),
        ("masks.crf=null", ["cam", "maps"]),
        ("segment.inference.mirror=false", ["cam", "maps", "masks", "segment"]),
        ("data.val=null", ["cam", "maps", "masks", "segment"]),
        ("data.score=null", ["cam", "maps"]),
        ("scores.curves={}", ["cam", "maps", "masks", "segment"]),
        ("seed=1", []),
        ("data.images_per_class=3", []),
        ("segment.images_per_class=3", ["cam", "maps", "masks"]),
    ],
)
def test_a_change_runs_just_what_depends_on_it(copied: tuple[Path, Path], override: str, still_good: list[str]) -> None:
    data, root = copied
    assert skipped(carried_out(data, root, override)) == still_good


def test_a_finished_model_learns_how_it_is_to_be_used(copied: tuple[Path, Path]) -> None:
    data, root = copied
    weights = root / "segment" / "model" / "model.safetensors"
    before = file_stamp(weights)
    carried_out(data, root, "segment.inference={scales: [0.75], crf: deeplab}")
    inference = load_model(root / "segment" / "model").inference
    assert (inference["scales"], inference["mirror"], inference["crf"]) == ([0.75], False, "deeplab")
    assert json.loads((root / "segment" / "manifest.json").read_text())["settings"]["inference"]["scales"] == [0.75]
    assert file_stamp(weights) == before


def test_masks_of_images_that_only_the_scores_need_train_nothing(copied: tuple[Path, Path], tmp_path: Path) -> None:
    data, root = copied
    moved = Path(shutil.copytree(data, tmp_path / "data"))
    write_label_map(moved / "SegmentationClass" / "val 1.png", np.ones((40, 48), np.uint8))
    assert skipped(carried_out(moved, root)) == ["cam", "maps", "masks", "segment"]
    write_label_map(moved / "SegmentationClass" / "train 1.png", np.ones((40, 48), np.uint8))
    assert skipped(carried_out(moved, root)) == ["cam", "maps"]
    (moved / "JPEGImages" / "train 1.png").touch()
    assert skipped(carried_out(moved, root)) == []


def artifacts(root: Path) -> dict[str, bytes]:
    """The files of all stages, but for those that hold times."""
    passing = {"manifest.json", "train.jsonl"}
    files = (path for path in root.glob("*/**/*") if path.is_file() and path.name not in passing)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_equal_stages_of_another_run_are_taken_over(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, other = finished
    before = artifacts(other)
    done = carried_out(data, tmp_path / "reusing", "masks.crf=null", reuse=[other])
    assert done["cam"] == f"taken from {other / 'cam'}"
    assert [stage for stage, words in done.items() if words == "running"] == ["masks", "segment", "scores"]
    carried_out(data, tmp_path / "alone", "masks.crf=null")
    assert artifacts(tmp_path / "reusing") == artifacts(tmp_path / "alone")
    assert artifacts(other) == before
    manifest = json.loads((tmp_path / "reusing" / "cam" / "manifest.json").read_text())
    assert manifest["reused_from"] == str(other / "cam")
    assert manifest["seconds"] == json.loads((other / "cam" / "manifest.json").read_text())["seconds"]
    assert skipped(carried_out(data, tmp_path / "reusing", "masks.crf=null")) == STAGES


def test_a_stage_may_have_another_name_in_another_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, other = finished
    recipe = load_recipe("toy-cam", TINY)
    names = {name: f"the {name}" for name in recipe.stages}
    renamed = {names[name]: stage.reading(names) for name, stage in recipe.stages.items()}
    said: list[str] = []
    run(replace(recipe, stages=renamed), open_dataset(data), tmp_path / "run", said.append, reuse=[other])
    taken = [f"the {name}: taken from {other / name}" for name in STAGES[:-1]]
    assert said == [*taken, "the scores: running"], "the folders of predictions are called after the segmenters"


def test_what_was_taken_over_outlives_the_other_run(copied: tuple[Path, Path], tmp_path: Path) -> None:
    data, other = copied
    done = carried_out(data, tmp_path / "reusing", reuse=[other])
    assert all(words.startswith("taken from") for words in done.values())
    expected = artifacts(tmp_path / "reusing")
    carried_out(data, other, "cam.train.epochs=1")
    assert artifacts(tmp_path / "reusing") == expected
    assert skipped(carried_out(data, tmp_path / "reusing")) == STAGES


def test_nothing_is_taken_from_a_run_with_another_seed_nor_from_itself(copied: tuple[Path, Path]) -> None:
    data, root = copied
    done = carried_out(data, root.parent / "other", "seed=1", reuse=[root])
    assert set(done.values()) == {"running"}
    done = carried_out(data, root, "segment.train.epochs=1", reuse=[root])
    assert [done["segment"], done["scores"]] == ["running", "running"]


def test_reports_tell_what_was_taken_over(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, other = finished
    carried_out(data, tmp_path / "run", reuse=[other])
    html = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Taken from other runs, timed there: cam, maps, masks, segment, scores." in html
    assert "The run is not finished" not in html


def test_only_runs_can_be_reused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = finished
    with pytest.raises(WeaksegError, match=r"nothing is not the folder of a run: it has no recipe\.yaml"):
        carried_out(data, tmp_path / "run", reuse=[tmp_path / "nothing"])


def test_changed_labels_run_everything_again(copied: tuple[Path, Path], tmp_path: Path) -> None:
    _, root = copied
    data = write_tiny_voc(tmp_path / "other")
    tags = json.loads((data / "tags.json").read_text())
    tags["train 0"] = ["spoon"]
    (data / "tags.json").write_text(json.dumps(tags))
    assert skipped(carried_out(data, root)) == []


def test_the_best_threshold_is_chosen_on_enough_masks(tmp_path: Path) -> None:
    data, root = write_tiny_voc(tmp_path / "data", train=MOST + 1, val=0), tmp_path / "run"
    recipe = load_recipe("toy-cam", [*TINY, "cam.images_per_class=4", "masks.crf=null"])
    run(recipe, open_dataset(data), root, lambda line: None, until="masks")
    curve = json.loads((root / "masks" / "curve.json").read_text())
    chosen = json.loads((root / "masks" / "threshold.json").read_text())
    assert chosen["threshold"] == curve["thresholds"][int(np.argmax(curve["mean_iou"]))]
    assert chosen["origin"] == "best on the score split"


def test_without_any_mask_each_image_has_its_threshold_and_it_is_said(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data", masks=False)
    carried_out(data, tmp_path / "run")
    chosen = json.loads((tmp_path / "run" / "masks" / "threshold.json").read_text())
    assert 0 < chosen.pop("usual") < 1
    assert chosen == {"threshold": "adaptive", "origin": "no masks are there to choose one"}
    assert json.loads((tmp_path / "run" / "scores" / "summary.json").read_text()) == []


def test_full_supervision_needs_no_localiser_and_no_tags(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    (data / "tags.json").unlink(missing_ok=True)
    dataset = open_dataset(data)
    untagged = {split: [replace(s, labels=WeakLabels()) for s in samples] for split, samples in dataset.splits.items()}
    small = [
        "segment.model.backbone={name: small, output_stride: 8, weights: null}",
        *(change for change in TINY if not change.startswith(("cam", "maps"))),
    ]
    said: list[str] = []
    run(load_recipe("supervised", small), replace(dataset, splits=untagged), tmp_path / "run", said.append)
    rows = json.loads((tmp_path / "run" / "scores" / "summary.json").read_text())
    assert [(row["title"], row["split"]) for row in rows] == [("DeepLab", "score"), ("DeepLab", "val")]


def test_full_supervision_names_an_image_without_a_mask_before_any_work(tmp_path: Path) -> None:
    dataset = open_dataset(write_tiny_voc(tmp_path / "data"))
    first, *others = dataset.splits["train"]
    partial = replace(dataset, splits={**dataset.splits, "train": [replace(first, mask=None), *others]})
    small = ["segment.model.backbone={name: small, output_stride: 8, weights: null}", "data.score=null"]
    with pytest.raises(WeaksegError, match=rf"1 of {1 + len(others)} images have no ground truth.*{first.name}"):
        run(load_recipe("supervised", small), partial, tmp_path / "run", print)
    assert not (tmp_path / "run" / "segment").exists()


def test_two_runs_on_one_folder_refuse_each_other(copied: tuple[Path, Path]) -> None:
    data, root = copied
    refused = pytest.raises(WeaksegError, match=rf"Another run is at work in .*process {os.getpid()}")
    with locked(root / LOCK_NAME, "run", wait=False), refused:
        carried_out(data, root)
    assert skipped(carried_out(data, root)) == STAGES


def test_an_image_without_tags_is_refused_before_any_work(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data", masks=False)
    tags = json.loads((data / "tags.json").read_text())
    del tags["train 3"]
    (data / "tags.json").write_text(json.dumps(tags))
    with pytest.raises(WeaksegError, match=r"1 of 8 images of the split \"train\" have no tags.*the first is train 3"):
        carried_out(data, tmp_path / "run")
    assert not (tmp_path / "run" / "cam").exists()


def test_a_missing_split_names_those_there_are(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    with pytest.raises(WeaksegError, match=r'has no split "test". It has: train \(8 images\), val \(4 images\)'):
        carried_out(data, tmp_path / "run", "data.val=test")


def test_a_split_to_measure_on_needs_masks(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    (data / "SegmentationClass" / "val 1.png").unlink()
    with pytest.raises(WeaksegError, match=r'1 images of the split "val" have no mask .* the first is val 1'):
        carried_out(data, tmp_path / "run", "data.val=val")


def test_a_folder_with_strange_files_is_not_cleared(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    precious = tmp_path / "run" / "cam" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    with pytest.raises(WeaksegError, match="holds files that no run has written; choose another --out folder"):
        carried_out(data, tmp_path / "run")
    assert precious.read_text() == "years of work"


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    write_label_map(data / "SegmentationClass" / "train 2.png", np.zeros((5, 5), np.uint8))
    with pytest.raises(WeaksegError, match="train 2"):
        carried_out(data, tmp_path / "run")


def test_the_log_tells_the_story(finished: tuple[Path, Path]) -> None:
    _, root = finished
    events = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events if event["event"] == "stage done"] == STAGES
    assert events[-1]["event"] == "done"
    manifest = json.loads((root / "cam" / "manifest.json").read_text())
    assert manifest["versions"]["torch"]
    assert manifest["settings"]["train"]["epochs"] == 2


def test_weights_that_a_late_stage_lacks_are_missed_before_the_first_begins(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    with pytest.raises(WeaksegError, match=r"nowhere\.safetensors"):
        carried_out(data, tmp_path / "run", "segment.model.backbone.weights=nowhere.safetensors")
    assert not (tmp_path / "run" / "cam").exists()


def test_later_stages_may_start_from_a_localisers_backbone(tmp_path: Path) -> None:
    hardly = "init_from: cam, train: {lr: 1.0e-30, weight_decay: 0.0}"
    recipe, root = tmp_path / "later.yaml", tmp_path / "run"
    stages = f"{{again: {{like: cam, {hardly}}}, segment: {{{hardly}}}, scores: null}}"
    recipe.write_text(f"extends: toy-cam\nname: later\nabout: two starts\nstages: {stages}\n", encoding="utf-8")
    run(load_recipe(str(recipe), TINY), open_dataset(write_tiny_voc(tmp_path / "data")), root)
    localiser = load_model(root / "cam" / "model").network.backbone.state_dict()
    for stage in ("again", "segment"):
        later = load_model(root / stage / "model").network.backbone.state_dict()
        assert all(torch.equal(later[name], value) for name, value in localiser.items())


def test_a_backbone_of_another_kind_is_no_start(tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "data")
    other = "segment.model.backbone={name: mobilenet_v2, weights: null}"
    with pytest.raises(WeaksegError, match=r'cannot start from the weights of the stage "cam".*of another kind'):
        carried_out(data, tmp_path / "run", "segment.init_from=cam", other)
    assert not (tmp_path / "run" / "cam").exists(), "told before the first stage begins"


def test_a_stage_may_learn_from_a_balanced_part_while_masks_are_made_for_all(tmp_path: Path) -> None:
    root = tmp_path / "run"
    carried_out(write_tiny_voc(tmp_path / "data"), root, "cam.images_per_class=2")
    updates = (root / "cam" / "train.jsonl").read_text().splitlines()
    assert len(updates) == 2  # four images, one batch, in each of the two epochs; all eight would make four
    assert len(list((root / "masks" / "masks").iterdir())) == 8


def test_stages_are_carried_out_in_the_order_of_what_they_read(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, root = finished
    recipe = yaml.safe_load(load_recipe("toy-cam", TINY).as_yaml())
    recipe["stages"] = dict(reversed(recipe["stages"].items()))
    (tmp_path / "shuffled.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    shuffled = load_recipe(str(tmp_path / "shuffled.yaml"))
    assert list(shuffled.stages) == STAGES
    run(shuffled, open_dataset(data), tmp_path / "run", lambda line: None)
    assert artifacts(tmp_path / "run") == artifacts(root)


def test_without_a_segmenter_its_rows_are_left_out(copied: tuple[Path, Path]) -> None:
    data, root = copied
    done = carried_out(data, root, "segment=null")
    assert done == {**dict.fromkeys(["cam", "maps", "masks"], "finished before, skipped"), "scores": "running"}
    rows = json.loads((root / "scores" / "summary.json").read_text())
    assert [row["title"] for row in rows] == ["CAM", "CAM + CRF"]


def test_a_stage_is_done_again_on_demand(copied: tuple[Path, Path]) -> None:
    data, root = copied
    before, masks = artifacts(root), root / "masks" / "masks"
    stamps = {path.name: file_stamp(path) for path in masks.iterdir()}
    write_label_map(masks / "train 0.png", np.zeros((36, 44), np.uint8))
    (masks / "of no image.png").write_text("left over")
    done = carried_out(data, root, redo=["masks"])
    assert [stage for stage, words in done.items() if words == "running"] == ["masks"]
    assert skipped(done) == ["cam", "maps", "segment", "scores"], "what is made again has the same key"
    assert artifacts(root) == before
    assert all(file_stamp(masks / name) != stamp for name, stamp in stamps.items())


def test_done_again_is_not_taken_from_another_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    data, other = finished
    done = carried_out(data, tmp_path / "run", reuse=[other], redo=["maps"])
    assert [stage for stage, words in done.items() if words == "running"] == ["maps"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("segment.model.backbone.weights=nowhere.safetensors", "nowhere.safetensors"),
        ("segment.train={epochs: 1, batch_size: 0}", "segment.train.batch_size"),
        ("data.train=trian", "trian"),
        ("segment.method=nowhere.py", "nowhere.py"),
    ],
)
def test_what_is_refused_changes_nothing_of_a_finished_run(copied: tuple[Path, Path], override: str, said: str) -> None:
    data, root = copied
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != LOCK_NAME}
    with pytest.raises(WeaksegError) as caught:
        carried_out(data, root, override)
    assert said in str(caught.value)
    with pytest.raises(WeaksegError, match="nowhere"):
        carried_out(data, root, redo=["nowhere"])
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != LOCK_NAME}
    assert after == before


def test_a_run_of_an_earlier_version_can_be_read_but_not_continued(copied: tuple[Path, Path]) -> None:
    data, root = copied
    for path in root.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["format"]
        path.write_text(json.dumps(manifest))
    recipe = yaml.safe_load((root / "recipe.yaml").read_text())
    recipe["stages"]["segment"]["backbone_from"] = recipe["stages"]["segment"].pop("init_from")
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = artifacts(root)
    with pytest.raises(WeaksegError, match="earlier version"):
        carried_out(data, root, "masks.crf=null")
    assert artifacts(root) == before
    assert "CAM + CRF" in write_report(root).read_text(encoding="utf-8")
    assert find_model(root).kind == "segmenter"
