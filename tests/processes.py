"""The command line in processes of its own: alone, as two that share the work, killed, or stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAMS = Path(__file__).with_name("programs")
FORKED = (_PROGRAMS / "forked.py",)
"""The program for two processes."""


def killed_at(*points: str) -> tuple[str | Path, ...]:
    """The program that is killed at each of the points in turn: TEXT, N, TEXT, N, …"""
    return (_PROGRAMS / "killed.py", *points, "--")


def interrupted_at(text: str, number: int) -> tuple[str | Path, ...]:
    """The program that gets Ctrl-C as the n-th file whose path holds the text is opened."""
    return (_PROGRAMS / "interrupted.py", text, str(number))


def process(
    *arguments: str | Path, program: Sequence[str | Path] = ("-m", "weakseg"), **environment: str
) -> subprocess.CompletedProcess[str]:
    """`process("recipes", PATH="…")` is `weakseg recipes` in a new process with that environment variable."""
    return subprocess.run(
        [sys.executable, *map(str, (*program, *arguments))],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
