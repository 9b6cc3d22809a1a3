"""The stages of a refiner: killed in the middle of each, and done by two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tiny import TINY, artifacts, set_options, write_tiny_voc
from weakseg.files import read_npz

KILLED = Path(__file__).with_name("killed.py")
# The recipe up to the walk, on the tiny data in seconds.
RECIPE = """
extends: toy-affinitynet
name: walk
about: up to the walk
stages: {cam_masks: null, masks: null, segment: null, scores: null}
"""
SHORT = (
    *(change for change in TINY if not change.startswith("segment")),
    "affinity.augment.crop=48",
    "affinity.train.epochs=2",
    "affinity.train.batch_size=4",
)


class Run(NamedTuple):
    """The arguments of a run, its folder, and what one uninterrupted process made of it."""

    arguments: list[str]
    folder: Path
    made: dict[str, bytes]


def weakseg(*start: str | Path, arguments: list[str], out: Path, **environment: str) -> int:
    command = [sys.executable, *map(str, start), *arguments, "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("walk")
    recipe = folder / "walk.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    data = write_tiny_voc(folder / "data")
    arguments = ["run", str(recipe), "--data", str(data), *set_options(*SHORT)]
    assert weakseg("-m", "weakseg", arguments=arguments, out=folder / "run") == 0
    return Run(arguments, folder / "run", artifacts(folder / "run"))


def after_the_maps(whole: Run, out: Path) -> Path:
    for stage in ("cam", "maps"):
        shutil.copytree(whole.folder / stage, out / stage)
    return out


def test_killed_while_it_gathers_learns_and_walks(whole: Run, tmp_path: Path) -> None:
    out = after_the_maps(whole, tmp_path / "run")
    for point in (("affinity/evidence/", "3"), ("affinity/checkpoint", "2"), ("walk/maps/", "4")):
        assert weakseg(KILLED, *point, arguments=whole.arguments, out=out) == -signal.SIGKILL, f"never came to {point}"
    assert weakseg("-m", "weakseg", arguments=whole.arguments, out=out) == 0
    found = artifacts(out)
    assert found.keys() == whole.made.keys()
    assert [name for name in found if found[name] != whole.made[name]] == []


def test_two_processes_learn_and_walk_as_one(whole: Run, tmp_path: Path) -> None:
    out = after_the_maps(whole, tmp_path / "run")
    torchrun = (
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "weakseg",
    )  # fmt: skip
    assert weakseg(*torchrun, arguments=whole.arguments, out=out, GLOO_SOCKET_IFNAME="lo") == 0
    found = artifacts(out)
    assert found.keys() == whole.made.keys()
    evidence = [name for name in found if name.startswith("affinity/evidence/")]
    assert len(evidence) == 8
    assert [name for name in evidence if found[name] != whole.made[name]] == []
    one, two = (losses(folder / "affinity") for folder in (whole.folder, out))
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-4)
    walked = [name for name in found if name.startswith("walk/maps/")]
    assert len(walked) == 8
    for name in walked:
        ours, theirs = (read_npz(folder / name)["maps"].astype(np.float32) for folder in (out, whole.folder))
        assert np.abs(ours - theirs).max() <= 2e-3


def losses(stage: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage / "train.jsonl").read_text().splitlines()]
