"""The real command line, killed with SIGKILL just before the n-th file whose path holds a given text gets its name.

Usage: python killed.py TEXT N ARGUMENTS… (the arguments of `weakseg`)
"""

from __future__ import annotations

import itertools
import os
import signal
import sys

from weakseg.cli import main

text, number = sys.argv[1], int(sys.argv[2])
sys.argv = ["weakseg", *sys.argv[3:]]
count = itertools.count(1)


def kill(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and text in str(arguments[1]) and next(count) == number:
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(kill)
main()
