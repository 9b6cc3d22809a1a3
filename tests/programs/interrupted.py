"""The real command line, with Ctrl-C for it and its worker processes when one of them opens the n-th file whose path
holds a given text. It leads a process group of its own, so that nothing else is stopped.

Usage: python interrupted.py TEXT N ARGUMENTS… (the arguments of `weakseg`)
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
os.setpgrp()


def interrupt(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and text in str(arguments[0]) and next(count) == number:
        os.killpg(os.getpgrp(), signal.SIGINT)


sys.addaudithook(interrupt)
main()
