"""`weakseg run` refuses what cannot work, in a sentence and before it is late."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tiny import TINY, TINY_SEAM, artifacts, set_options, write_tiny_voc
from weakseg.methods.store import load_model
from weakseg.models.registry import BackboneSettings, build_backbone

WEIGHTS = "cam.model.backbone.weights"


@pytest.fixture
def refused(weakseg: Any, tiny_voc: Path, tmp_path: Path) -> Callable[..., str]:
    """What a run on the tiny data answers, which must fail."""

    def run(*settings: str, data: Path = tiny_voc, out: Path = tmp_path / "run", recipe: str = "toy-cam") -> str:
        answer = weakseg("run", recipe, "--data", data, "--out", out, *set_options(*TINY, *settings))
        assert answer.status == 1
        assert answer.err.count("Error: ") == 1
        return str(answer.err)

    return run


def test_full_supervision_needs_masks_alone(weakseg: Any, tiny_voc: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_voc / "JPEGImages", data / "images")
    shutil.copytree(tiny_voc / "SegmentationClass", data / "masks")
    (data / "classes.txt").write_text("kettle\nspoon\n")
    settings = [setting for setting in TINY if setting.startswith(("segment", "runtime"))]
    answer = weakseg("run", "toy-supervised", "--data", data, "--out", tmp_path / "run", *set_options(*settings))
    assert answer.status == 0, answer.err
    assert (tmp_path / "run" / "segment" / "model").is_dir()
    answer = weakseg("run", "toy-cam", "--data", data, "--out", tmp_path / "other", *set_options(*TINY))
    assert answer.status == 1
    assert "tags" in answer.err


def test_a_finished_run_says_so_stage_by_stage(weakseg: Any, finished: Any, tmp_path: Path, copy_tree: Any) -> None:
    root = copy_tree(finished.run, tmp_path / "run")
    answer = weakseg("run", "toy-cam", "--data", finished.data, "--out", root, *set_options(*TINY))
    assert answer.status == 0, answer.err
    stages = [line for line in answer.out.splitlines() if "finished before, skipped" in line]
    assert [line.split(":")[0] for line in stages] == ["cam", "maps", "masks", "segment", "scores"]
    assert answer.out.splitlines()[-1] == f"Report: {root / 'report.html'}"
    assert "CAM + CRF" in answer.out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cam.train.epoch=2", 'cam.train.epoch: unknown setting. Did you mean "epochs"?'),
        ("cma.train.epochs=2", "there is no stage or setting 'cma'. Did you mean \"cam\"?"),
        ("cam.train.lr=fast", "cam.train.lr: expected a number"),
        ("cam.train.steps=3", "cam.train: give either epochs or steps, and null for the other"),
        ("maps.scales=[1, 0]", "maps.scales[1]: expected a number of 0.01 or more"),
        ("seed=-1", "seed: expected a number of 0 or more"),
        ("nonsense", "write it as key=value"),
    ],
)
def test_wrong_settings(refused: Callable[..., str], tmp_path: Path, setting: str, message: str) -> None:
    assert message in refused(setting)
    assert not (tmp_path / "run").exists()


def test_wrong_data(refused: Callable[..., str], tiny_voc: Path, tmp_path: Path) -> None:
    assert "gone does not exist." in refused(data=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "empty is no data set that weakseg knows. Looked for:" in refused(data=tmp_path / "empty")
    assert 'has no split "trian". It has: train (8 images), val (4 images)' in refused("data.train=trian")
    (tiny_voc / "ImageSets" / "Segmentation" / "test.txt").write_text("")
    assert 'The split "test" has no images.' in refused("data.train=test")


def test_seam_names_what_has_no_tags(refused: Callable[..., str], tmp_path: Path) -> None:
    data = write_tiny_voc(tmp_path / "untagged", masks=False)
    (data / "tags.json").unlink()
    message = refused(*TINY_SEAM, data=data, recipe="seam")
    assert '8 of 8 images of the split "train" have no tags and no other weak label, the first is train 0.' in message
    assert "Tag them, or take them out of the split." in message
    assert not (tmp_path / "run" / "cam").exists()


def test_a_damaged_image_is_named(refused: Callable[..., str], tiny_voc: Path) -> None:
    path = tiny_voc / "JPEGImages" / "train 5.png"
    path.write_bytes(path.read_bytes()[:-500])
    assert f"{path} cannot be decoded" in refused()


def test_out_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "file cannot be used as a run folder: " in refused(out=tmp_path / "file")
    assert "inside cannot be used as a run folder: " in refused(out=tmp_path / "file" / "inside")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_out_is_read_only(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "run cannot be used as a run folder: Permission denied" in refused(out=tmp_path / "locked" / "run")


class Boom:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("executed"),))


def test_weights_that_are_none(refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "The weights gone.pth do not exist." in refused(f"{WEIGHTS}=gone.pth")
    for suffix in (".pth", ".safetensors"):
        Path(f"text{suffix}").write_text("dear reader, this is no network")
        assert f"text{suffix} is not a " in refused(f"{WEIGHTS}=text{suffix}")


def test_weights_of_another_network(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"conv1.weight": torch.zeros(4, 3, 3, 3)}
    torch.save(tensors, "other.pth")
    save_file(tensors, "other.safetensors")
    for name in ("other.pth", "other.safetensors"):
        message = refused(f"{WEIGHTS}={name}")
        assert f"{name} does not fit this backbone." in message
        assert "1 unknown: conv1.weight. Is it the file of another network?" in message


def test_weights_that_are_a_program_do_not_run(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.pth").write_bytes(pickle.dumps(Boom(), protocol=2))
    with zipfile.ZipFile("new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv1.weight": Boom()}, protocol=2))
        archive.writestr("archive/version", "3\n")
    for name in ("old.pth", "new.pth"):
        assert f"{name} is not a file of plain tensors written by torch.save" in refused(f"{WEIGHTS}={name}")
    assert not Path("executed").exists()


def test_after_a_mistake_the_same_folder_can_be_used(
    refused: Callable[..., str], weakseg: Any, tiny_voc: Path, tmp_path: Path
) -> None:
    refused(f"{WEIGHTS}=gone.pth")
    answer = weakseg("predict", tmp_path / "run", tiny_voc / "JPEGImages", "--out", tmp_path / "out")
    assert answer.status == 1
    assert "run is neither a model folder (with config.json) nor a run (with recipe.yaml)" in answer.err
    answer = weakseg("run", "toy-cam", "--data", tiny_voc, "--out", tmp_path / "run", *set_options(*TINY))
    assert answer.status == 0, answer.err


def test_a_report_of_nothing(weakseg: Any, tmp_path: Path) -> None:
    answer = weakseg("report", tmp_path)
    assert answer.status == 1
    assert answer.err.startswith("Error: ")
    assert str(tmp_path) in answer.err


def test_until_a_stage_then_the_rest(weakseg: Any, finished: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = weakseg(*finished.command, "--out", out, "--until", "masks")
    assert answer.status == 0, answer.err
    assert sorted(path.parent.name for path in out.glob("*/manifest.json")) == ["cam", "maps", "masks"]
    assert (out / "report.html").is_file()
    answer = weakseg(*finished.command, "--out", out)
    assert answer.status == 0, answer.err
    assert answer.out.count("finished before, skipped") == 3
    assert artifacts(out) == artifacts(finished.run)


def test_until_an_unknown_stage(weakseg: Any, finished: Any, tmp_path: Path) -> None:
    answer = weakseg(*finished.command, "--out", tmp_path / "run", "--until", "mask")
    assert answer.status == 1
    assert '"mask"' in answer.err
    assert "cam, maps, masks, segment, scores" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_stage_again(weakseg: Any, finished: Any, tmp_path: Path, copy_tree: Any) -> None:
    root = copy_tree(finished.run, tmp_path / "run")
    answer = weakseg(*finished.command, "--out", root, "--redo", "masks", "--redo", "scores")
    assert answer.status == 0, answer.err
    assert [line.split(":")[0] for line in answer.out.splitlines() if line.endswith(": running")] == ["masks", "scores"]
    assert artifacts(root) == artifacts(finished.run)
    answer = weakseg(*finished.command, "--out", root, "--redo", "maks")
    assert answer.status == 1
    assert '"maks"' in answer.err


def test_weights_are_given_once_for_all_backbones(weakseg: Any, tiny_voc: Path, tmp_path: Path) -> None:
    torch.manual_seed(8)
    backbone = build_backbone(BackboneSettings(name="small", output_stride=8, weights=None))
    weights, out = tmp_path / "small.safetensors", tmp_path / "run"
    save_file(backbone.state_dict(), weights)
    starting = (f"{stage}.model.backbone.weights=imagenet" for stage in ("cam", "segment"))
    hardly = (
        "cam.train={steps: 1, batch_size: 4, lr: 1.0e-30, weight_decay: 0}",
        "segment.train={steps: 1, lr: 1.0e-30, weight_decay: 0}",
    )
    settings = set_options(*TINY, *starting, *hardly)
    answer = weakseg("run", "toy-cam", "--data", tiny_voc, "--out", out, *settings, "--weights", weights)
    assert answer.status == 0, answer.err
    for stage in ("cam", "segment"):
        learned = load_model(out / stage / "model").network.get_submodule("backbone").state_dict()
        torch.testing.assert_close(learned, backbone.state_dict(), rtol=0, atol=1e-20)
    answer = weakseg("run", "toy-cam", "--data", tiny_voc, "--out", out, *settings, "--weights", tmp_path / "gone.pth")
    assert answer.status == 1
    assert "gone.pth" in answer.err
