"""The command line: in this process, or in processes of its own, alone, as two that share the work, killed, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from weakseg.cli import main

_PROGRAMS = Path(__file__).with_name("programs")


@dataclass
class Answer:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


Command = Callable[..., Answer]


def here(*arguments: str | Path) -> Answer:
    """`here("recipes", "cam")` is `weakseg recipes cam` in this process."""
    status, message, out, err = 0, "", StringIO(), StringIO()
    with patch.object(sys, "argv", ["weakseg", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                status, message = 1, stop.code
            else:
                status = stop.code or 0
    return Answer(status, out.getvalue(), err.getvalue() + message)


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


def in_two_processes(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`weakseg` with these arguments in two processes."""
    return process(*arguments, program=(_PROGRAMS / "forked.py",))


def killed_at(*points: str) -> tuple[str | Path, ...]:
    """The program that is killed at each of the points in turn: TEXT, N, TEXT, N, …"""
    return (_PROGRAMS / "killed.py", *points, "--")


def interrupted_at(text: str, number: int) -> tuple[str | Path, ...]:
    """The program that gets Ctrl-C as the n-th file whose path holds the text is opened."""
    return (_PROGRAMS / "interrupted.py", text, str(number))
