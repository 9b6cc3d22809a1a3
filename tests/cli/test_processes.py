"""Two processes do what one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import in_two_processes, process
from tiny import TINY, artifacts, set_options
from weakseg.files import read_npz
from weakseg.methods.store import load_model


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def losses(stage: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage / "train.jsonl").read_text().splitlines()]


def largest_difference(one: Path, two: Path) -> float:
    """Between the maps of two stages."""
    paths = list((one / "maps").iterdir())
    assert len(paths) == 8
    pairs = [
        [read_npz(stage / "maps" / path.name)["maps"].astype(np.float32) for stage in (one, two)] for path in paths
    ]
    return max(float(np.abs(first - second).max()) for first, second in pairs)


@pytest.fixture(scope="module")
def alone_then_two(finished_seam: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in which two processes go on with the localiser and the refiner that one process has trained."""
    root = tmp_path_factory.mktemp("two") / "run"
    for stage in ("cam", "affinity"):
        shutil.copytree(finished_seam.run / stage, root / stage)
    done = in_two_processes(*finished_seam.command, "--out", root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Report: ") == 1, "only the first process speaks"
    return root


def test_the_work_is_shared(alone_then_two: Path) -> None:
    manifests = {path.parent.name: json.loads(path.read_text()) for path in alone_then_two.glob("*/manifest.json")}
    assert {name: manifest["processes"] for name, manifest in manifests.items()} == {
        "cam": 1, "maps": 2, "cam_masks": 2, "affinity": 1, "walk": 2, "walked": 2, "masks": 2, "segment": 2,
        "scores": 2,
    }  # fmt: skip


def test_the_same_maps_and_masks_to_the_last_bit(alone_then_two: Path, finished_seam: Any) -> None:
    assert files(alone_then_two) == files(finished_seam.run)
    found, expected = artifacts(alone_then_two), artifacts(finished_seam.run)
    same = [name for name in expected if not name.startswith(("segment/", "scores/"))]
    assert sum(name.endswith(".png") for name in same) == 3 * 8
    assert sum("/maps/" in name for name in same) == 2 * 8
    assert [name for name in same if found[name] != expected[name]] == []


def test_the_same_scores_of_the_same_masks(alone_then_two: Path, finished_seam: Any) -> None:
    """Counts are summed over the processes, so the rows that the segmenter has no part in are equal."""

    def rows(root: Path) -> list[dict[str, Any]]:
        found = json.loads((root / "scores" / "scores.json").read_text())["rows"]
        return [row for row in found if row["title"] != "DeepLab"]

    assert rows(alone_then_two) == rows(finished_seam.run)


def test_a_segmenter_has_the_loss_curve_of_one_process(alone_then_two: Path, finished_seam: Any) -> None:
    one, two = losses(finished_seam.run / "segment"), losses(alone_then_two / "segment")
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-4)


def test_one_process_goes_on_after_two(
    alone_then_two: Path, finished_seam: Any, weakseg: Any, tmp_path: Path, copy_tree: Any
) -> None:
    root = copy_tree(alone_then_two, tmp_path / "run")
    answer = weakseg(*finished_seam.command, "--out", root)
    assert answer.status == 0, answer.err
    assert answer.out.count("finished before, skipped") == 9


def test_localiser_and_refiner_learn_the_same_in_two_processes(finished_seam: Any, tmp_path: Path) -> None:
    """The refiner from the maps of one process, whose last bits those of two may not share."""
    one, two = finished_seam.run, tmp_path / "run"
    shutil.copytree(one / "maps", two / "maps")
    done = in_two_processes(*finished_seam.command, "--out", two)
    assert done.returncode == 0, done.stderr
    assert files(two) == files(one)
    for stage in ("cam", "affinity"):
        assert len(losses(one / stage)) == 4
        assert losses(two / stage) == pytest.approx(losses(one / stage), abs=1e-4)
    for path in (one / "affinity" / "evidence").iterdir():
        assert (two / "affinity" / "evidence" / path.name).read_bytes() == path.read_bytes()
    assert largest_difference(one / "walk", two / "walk") <= 2e-3


def test_pasting_learns_the_same_in_two_processes(finished_pasting: Any, tmp_path: Path) -> None:
    one, two = finished_pasting.run, tmp_path / "run"
    for stage in ("cam", "maps", "masks"):
        shutil.copytree(one / stage, two / stage)
    done = in_two_processes(*finished_pasting.command, "--out", two)
    assert done.returncode == 0, done.stderr
    found, expected = artifacts(two), artifacts(one)
    assert found.keys() == expected.keys()
    pool = [name for name in expected if name.startswith("round-1/pool/")]
    assert len(pool) > 8
    assert [name for name in pool if found[name] != expected[name]] == []
    assert len(losses(one / "round-1" / "cam")) == 4
    assert losses(two / "round-1" / "cam") == pytest.approx(losses(one / "round-1" / "cam"), abs=1e-4)
    assert largest_difference(one / "round-1" / "maps", two / "round-1" / "maps") <= 2e-3


def test_confounders_are_the_same_in_two_processes_to_the_last_bit(finished_context: Any, tmp_path: Path) -> None:
    one, two = finished_context.run, tmp_path / "run"
    for stage in ("cam", "maps", "masks"):
        shutil.copytree(one / stage, two / stage)
    done = in_two_processes(*finished_context.command, *set_options("rounds.count=1"), "--out", two)
    assert done.returncode == 0, done.stderr
    path = Path("round-1", "confounders", "confounders.npz")
    assert (two / path).read_bytes() == (one / path).read_bytes()
    assert read_npz(two / path)["confounder"].max() > 0
    assert losses(two / "round-1" / "cam") == pytest.approx(losses(one / "round-1" / "cam"), abs=1e-4)
    assert largest_difference(one / "round-1" / "maps", two / "round-1" / "maps") <= 2e-3


def test_icd_learns_in_two_processes(finished_icd: Any, tmp_path: Path) -> None:
    """Each process normalises the features of its own images, so what is learned is alike, not equal."""
    one, two = finished_icd.run, tmp_path / "run"
    done = in_two_processes(*finished_icd.command, "--out", two)
    assert done.returncode == 0, done.stderr
    found, expected = artifacts(two), artifacts(one)
    assert found.keys() == expected.keys()
    ids = [name for name in expected if name.startswith("superpixels/") and name.endswith(".png")]
    assert len(ids) == 8
    assert [name for name in ids if found[name] != expected[name]] == []
    first = [json.loads((run / "cam" / "train.jsonl").read_text().splitlines()[0]) for run in (one, two)]
    assert first[1]["classification"] == pytest.approx(first[0]["classification"], abs=1e-4)
    means = [load_model(run / "cam" / "model").network.get_buffer("cam_means") for run in (one, two)]
    torch.testing.assert_close(means[1], means[0], rtol=0.25, atol=0)  # images of both, counted once


def test_masks_of_an_embedding_are_the_same_in_two_processes(finished_spml: Any, tmp_path: Path) -> None:
    """They spread and retrieve with the embedding of one process, and learn a classifier from the same masks."""
    one, two = finished_spml.run, tmp_path / "run"
    for stage in ("cam", "maps", "partial", "embedding"):
        shutil.copytree(one / stage, two / stage)
    done = in_two_processes(*finished_spml.command, "--out", two)
    assert done.returncode == 0, done.stderr
    found, expected = artifacts(two), artifacts(one)
    masks = [name for name in expected if name.startswith(("pseudo/masks/", "retrieved/masks/"))]
    assert len(masks) == 16
    assert [name for name in masks if found[name] != expected[name]] == []
    assert losses(two / "classifier")[0] == pytest.approx(losses(one / "classifier")[0], abs=1e-3)


def test_an_embedding_learns_in_two_processes(finished_spml: Any, tmp_path: Path) -> None:
    """Both share their prototypes, so that the first losses are those of one process."""
    one, two = finished_spml.run, tmp_path / "run"
    for stage in ("cam", "maps", "partial"):
        shutil.copytree(one / stage, two / stage)
    done = in_two_processes(*finished_spml.command, "--out", two, "--until", "embedding")
    assert done.returncode == 0, done.stderr
    assert losses(two / "embedding") == pytest.approx(losses(one / "embedding"), abs=1e-3)


def test_a_mistake_stops_all_processes_of_torchrun_with_one_message(tiny_voc: Path, tmp_path: Path) -> None:
    wrong = set_options(*TINY, "cam.train.batch_size=3")
    command = ("run", "toy-cam", "--data", tiny_voc, "--out", tmp_path / "run", *wrong)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "weakseg")
    done = process(*command, program=torchrun, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode != 0
    assert "A batch of 3 images cannot be shared equally by 2 processes" in done.stderr
    assert "choose a batch size that 2 divides." in done.stderr


def test_one_of_two_processes_writes_for_tensorboard(finished: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    short = ("--until", "cam", *set_options("runtime.tensorboard=true"))
    done = in_two_processes(*finished.command, *short, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run").rglob("*tfevents*"))) == 1


def test_a_comparison_in_two_processes(tiny_voc: Path, tmp_path: Path) -> None:
    out, recipes = tmp_path / "out", ("toy-cam", "toy-supervised")
    settings = ("--seeds", "2", *set_options(*TINY))
    done = in_two_processes("compare", *recipes, "--data", tiny_voc, "--out", out, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[2/2] toy-supervised, seed 2") == 1, "only the first process speaks"
    assert done.stdout.count("Comparison: ") == 1
    manifest = json.loads((out / "toy-supervised" / "seed-2" / "segment" / "manifest.json").read_text())
    assert manifest["processes"] == 2
    table = json.loads((out / "compare.json").read_text())
    assert table["unfinished"] == {}
    assert {row["run"] for row in table["rows"]} == {"toy-cam", "toy-supervised"}
