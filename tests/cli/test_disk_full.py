"""A disk that fills up, a real one: a clear message, nothing half-written, and the same bytes once there is room."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tiny import TINY, artifacts, set_options
from weakseg.files import read_npz


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk in memory of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk can be mounted by root only: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


def used(disk: Path) -> int:
    return int(subprocess.run(["du", "-sk", str(disk)], capture_output=True, text=True, check=True).stdout.split()[0])


def read_all(root: Path) -> None:
    """Read every file to its end; raises for one that is not complete."""
    for path in root.rglob("*"):
        if path.suffix == ".npz":
            read_npz(path)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                np.asarray(image)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    file.get_tensor(name)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    assert not list(root.rglob("*.writing"))


def test_the_same_command_finishes_when_there_is_room_again(weakseg: Any, finished: Any, disk: Path) -> None:
    """The disk grows by little more than one file whenever it is full, so that the run is stopped at many places."""
    root = disk / "run"
    command = ("run", "toy-cam", "--data", finished.data, "--out", root, *set_options(*TINY))
    stopped_at: list[str] = []
    resize(disk, 8)
    # Checkpoints would need so much room that everything after them found enough.
    while (answer := weakseg(*command, "--set", "runtime.checkpoint_steps=null")).status:
        stopped_at.append(full(answer, root))
        assert len(stopped_at) < 50, stopped_at
        whole = finished.run / Path(stopped_at[-1]).relative_to(root)
        resize(disk, used(disk) + 12 + (whole.stat().st_size // 1024 if whole.is_file() else 0))
    for place in ("cam/model", "maps/maps", "masks/masks", "segment/model", "scores/predictions", "report"):
        assert any(place in path for path in stopped_at), (place, stopped_at)
    assert weakseg(*command).out.count("finished before, skipped") == 5
    found, expected = artifacts(root), artifacts(finished.run)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def full(answer: Any, root: Path) -> str:
    """The file that did not fit, as the message says, when everything else in the folder is whole."""
    assert answer.status == 1, answer.err
    message = answer.err[answer.err.index("Error: ") :]
    assert message.lower().startswith("error: the disk is full")
    assert message.endswith("Free some space and run the same command again; finished work is kept.")
    read_all(root)
    named = re.search(r"is full: (.*) could not be written", message)
    return named[1] if named else str(root / "some log")


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(weakseg: Any, finished: Any, disk: Path) -> None:
    root = disk / "run"
    resize(disk, 6144)
    answer = weakseg("run", "toy-cam", "--data", finished.data, "--out", root, *set_options(*TINY))
    assert full(answer, root) == str(root / "cam" / "checkpoint.safetensors")
    with safe_open(root / "cam" / "checkpoint.safetensors", framework="np") as file:
        assert file.metadata() == {"step": "1"}


def test_predict_on_a_full_disk(weakseg: Any, finished: Any, disk: Path) -> None:
    images = finished.data / "JPEGImages"
    resize(disk, 24)
    answer = weakseg("predict", finished.run, images, "--out", disk / "out", "--probabilities")
    assert answer.status == 1
    assert "disk is full" in answer.err
    read_all(disk)
    resize(disk, 4096)
    answer = weakseg("predict", finished.run, images, "--out", disk / "out", "--probabilities")
    assert answer.status == 0, answer.err
    assert len(list((disk / "out" / "masks").iterdir())) == 12


def test_evaluate_and_data_commands_on_a_full_disk(weakseg: Any, finished: Any, disk: Path) -> None:
    resize(disk, 8)
    masks = finished.data / "SegmentationClass"
    for command in (
        ("evaluate", masks, "--data", finished.data, "--out", disk / "scores"),
        ("data", "make-toy", disk / "toy", "--train", "4", "--val", "1", "--size", "64"),
        ("data", "simulate", finished.data, "--out", disk / "weak" / "labels.json"),
    ):
        answer = weakseg(*command)
        assert answer.status == 1, answer.out
        assert "disk is full" in answer.err
        read_all(disk)
