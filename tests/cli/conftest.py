"""The command line in processes of its own, and a finished run to look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tiny import TINY, set_options, write_tiny_voc

Process = Callable[..., "subprocess.CompletedProcess[str]"]


class Finished(NamedTuple):
    """A data set and what `weakseg run toy` made of it. Whoever changes anything works on a copy."""

    data: Path
    run: Path


@pytest.fixture(scope="session")
def process() -> Process:
    """`process("recipes", PATH="…")` is `weakseg recipes` in a new process with that environment variable."""

    def start(*arguments: str | Path, module: tuple[str, ...] = ("weakseg",), **environment: str) -> object:
        return subprocess.run(
            [sys.executable, "-m", *module, *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
        )

    return start  # type: ignore[return-value]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, process: Process) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    data, run = write_tiny_voc(folder / "data"), folder / "run"
    done = process("run", "toy", "--data", data, "--out", run, *set_options(*TINY))
    assert done.returncode == 0, done.stderr
    return Finished(data, run)
