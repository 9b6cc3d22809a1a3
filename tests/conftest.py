"""What tests of several rooms share: a tiny data set, and the real command line in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tiny import write_tiny_voc

# Kernels are compiled on their first call, which takes longer than any example may.
settings.register_profile("weakseg", deadline=None)
settings.load_profile("weakseg")


@pytest.fixture
def tiny_voc(tmp_path: Path) -> Path:
    return write_tiny_voc(tmp_path / "tiny voc")


@pytest.fixture
def copy_tree() -> Callable[[Path, Path], Path]:
    def copy(source: Path, target: Path) -> Path:
        return Path(shutil.copytree(source, target))

    return copy


@dataclass
class Answer:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def weakseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`weakseg("recipes", "cam")` is the command line `weakseg recipes cam`."""
    from weakseg.cli import main

    def command(*arguments: str | Path) -> Answer:
        monkeypatch.setattr(sys, "argv", ["weakseg", *map(str, arguments)])
        capsys.readouterr()
        status, message = 0, ""
        try:
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                status, message = 1, stop.code
            else:
                status = stop.code or 0
        out, err = capsys.readouterr()
        return Answer(status, out, err + message)

    return command
