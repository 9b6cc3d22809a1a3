"""The real command line, killed with SIGKILL just before the n-th file whose path holds a given text gets its name, and
then started again for the next such point. Each start is a fork of this process, which imports the libraries once.

Usage: python killed.py TEXT N [TEXT N …] -- ARGUMENTS… (the arguments of `weakseg`); fails where a point never comes
"""

from __future__ import annotations

import itertools
import os
import signal
import sys

import weakseg.pipeline.run
import weakseg.report.run  # noqa: F401
from weakseg.cli import main
from weakseg.pipeline.recipe import stage_kinds


def killed_at(text: str, number: int) -> None:
    """The command line, to its end unless it comes to the point."""
    count = itertools.count(1)

    def kill(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and text in str(arguments[1]) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    main()


end = sys.argv.index("--")
points = list(zip(sys.argv[1:end:2], map(int, sys.argv[2:end:2]), strict=True))
sys.argv = ["weakseg", *sys.argv[end + 1 :]]
stage_kinds()
for point in points:
    child = os.fork()
    if child == 0:
        killed_at(*point)
        sys.exit()
    _, status = os.waitpid(child, 0)
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        sys.exit(f"never came to {point}")
