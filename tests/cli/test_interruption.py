"""Killed in the middle of every stage and started again: the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import TINY, artifacts, set_options, write_tiny_voc

KILLED = Path(__file__).with_name("killed.py")


def run_weakseg(data: Path, out: Path, *killed_at: str) -> int:
    """The status of `weakseg run toy` in a process of its own, killed at (text, number) if given."""
    script = [str(KILLED), *killed_at] if killed_at else ["-m", "weakseg"]
    arguments = ["run", "toy", "--data", str(data), "--out", str(out), *set_options(*TINY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    data = write_tiny_voc(folder / "data")
    assert run_weakseg(data, folder / "run") == 0
    return data, artifacts(folder / "run")


@pytest.mark.parametrize(
    "killed_at",
    [
        [("cam/checkpoint", "2"), ("cam/model/model.safetensors", "1")],
        [("maps/maps/", "4"), ("masks/masks/", "3")],
        [("segment/checkpoint", "3"), ("segment/manifest.json", "1")],
        [("masks/curve.json", "1"), ("scores/predictions/", "5"), ("scores/scores.json", "1"), ("report.html", "1")],
    ],
    ids=lambda points: "-".join(text.strip("/").replace("/", ".") for text, _ in points),
)
def test_killed_runs_end_with_the_same_bytes(
    whole: tuple[Path, dict[str, bytes]], killed_at: list[tuple[str, str]], tmp_path: Path
) -> None:
    data, expected = whole
    out = tmp_path / "run"
    for point in killed_at:
        assert run_weakseg(data, out, *point) == -signal.SIGKILL, f"never came to {point}"
    assert run_weakseg(data, out) == 0
    found = artifacts(out)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
