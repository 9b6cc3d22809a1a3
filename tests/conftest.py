"""What tests of several rooms share: a tiny data set, and the real command line in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from commands import Command, here
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


@pytest.fixture
def weakseg() -> Command:
    """`weakseg("recipes", "cam")` is the command line `weakseg recipes cam`, in this process."""
    return here
