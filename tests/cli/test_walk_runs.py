"""The stages of a refiner, and of a second round: killed in the middle of each, and done by two processes."""

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


class Recipe(NamedTuple):
    """A recipe that ends with maps, on the tiny data in seconds; after `done`, its other stages are carried out anew.

    `kills` are the n-th files that they are killed at, `exact` what any number of processes makes to the last bit,
    `learning` and `maps` the stages that are made with sums over processes.
    """

    text: str
    changes: tuple[str, ...]
    done: tuple[str, ...]
    kills: tuple[tuple[str, str], ...]
    exact: str
    learning: str
    maps: str


RECIPES = {
    "walk": Recipe(
        """
extends: toy-affinitynet
name: walk
about: up to the walk
stages: {cam_masks: null, masks: null, segment: null, scores: null}
""",
        ("affinity.augment.crop=48", "affinity.train.epochs=2", "affinity.train.batch_size=4"),
        ("cam", "maps"),
        (("affinity/evidence/", "3"), ("affinity/checkpoint", "2"), ("walk/maps/", "4")),
        "affinity/evidence/",
        "affinity",
        "walk",
    ),
    "pasting": Recipe(
        """
extends: toy-cda
name: pasting
about: up to the maps of the second round
stages: {cda_masks: null, segment: null, scores: null}
""",
        ("masks.threshold=0.2", "masks.crf=null", "pool.smallest=0", "pool.largest=1", "cda_cam.train.epochs=1"),
        ("cam", "maps", "masks"),
        (("pool/crops/", "3"), ("pool/index.json", "1"), ("cda_cam/checkpoint", "2"), ("cda_maps/maps/", "3")),
        "pool/",
        "cda_cam",
        "cda_maps",
    ),
}


class Run(NamedTuple):
    """A recipe, the arguments that carry it out, the run's folder, and what one uninterrupted process made of it."""

    recipe: Recipe
    arguments: list[str]
    folder: Path
    made: dict[str, bytes]


def weakseg(*start: str | Path, arguments: list[str], out: Path, **environment: str) -> int:
    command = [sys.executable, *map(str, start), *arguments, "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.fixture(scope="module", params=RECIPES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recipe, folder = RECIPES[request.param], tmp_path_factory.mktemp(request.param)
    path = folder / "recipe.yaml"
    path.write_text(recipe.text, encoding="utf-8")
    data = write_tiny_voc(folder / "data")
    short = (change for change in TINY if not change.startswith("segment"))
    arguments = ["run", str(path), "--data", str(data), *set_options(*short, *recipe.changes)]
    assert weakseg("-m", "weakseg", arguments=arguments, out=folder / "run") == 0
    return Run(recipe, arguments, folder / "run", artifacts(folder / "run"))


def begun(whole: Run, out: Path) -> Path:
    """A run whose first stages are done."""
    for stage in whole.recipe.done:
        shutil.copytree(whole.folder / stage, out / stage)
    return out


def test_killed_in_every_stage_it_goes_on_to_the_same_bytes(whole: Run, tmp_path: Path) -> None:
    out = begun(whole, tmp_path / "run")
    for point in whole.recipe.kills:
        assert weakseg(KILLED, *point, arguments=whole.arguments, out=out) == -signal.SIGKILL, f"never came to {point}"
    assert weakseg("-m", "weakseg", arguments=whole.arguments, out=out) == 0
    found = artifacts(out)
    assert found.keys() == whole.made.keys()
    assert [name for name in found if found[name] != whole.made[name]] == []


def test_two_processes_do_what_one_does(whole: Run, tmp_path: Path) -> None:
    out, recipe = begun(whole, tmp_path / "run"), whole.recipe
    torchrun = (
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "weakseg",
    )  # fmt: skip
    assert weakseg(*torchrun, arguments=whole.arguments, out=out, GLOO_SOCKET_IFNAME="lo") == 0
    found = artifacts(out)
    assert found.keys() == whole.made.keys()
    exact = [name for name in found if name.startswith(recipe.exact)]
    assert len(exact) >= 8
    assert [name for name in exact if found[name] != whole.made[name]] == []
    one, two = (losses(folder / recipe.learning) for folder in (whole.folder, out))
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-4)
    made = [name for name in found if name.startswith(f"{recipe.maps}/maps/")]
    assert len(made) == 8
    for name in made:
        ours, theirs = (read_npz(folder / name)["maps"].astype(np.float32) for folder in (out, whole.folder))
        assert np.abs(ours - theirs).max() <= 2e-3


def losses(stage: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage / "train.jsonl").read_text().splitlines()]
