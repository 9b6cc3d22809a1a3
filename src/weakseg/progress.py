"""Progress of long work: a bar with rate and time left; plain lines where nobody watches a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from weakseg import parallel

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows `done / total unit`, the rate, the time left and named values such as the loss.

    Use as a context manager. Only rank 0 of a job shows anything.
    """

    def __init__(self, title: str, total: int, unit: str = "images", done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.done_before = done
        self.started = self.last_line = time.monotonic()
        self.values = ""
        self.silent = parallel.rank() != 0
        self.bar = None if self.silent or not sys.stderr.isatty() else _terminal_bar(title, total, unit, done)

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None:
            self._print_line()

    @property
    def rate(self) -> float:
        """Units a second since the beginning of this process's work."""
        return (self.done - self.done_before) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, count: int = 1, **values: float) -> None:
        """Count finished units; `values` (loss=0.31) are shown beside the bar from now on."""
        self.done = min(self.done + count, self.total)
        if values:
            self.values = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.bar is not None:
            self.bar.update(
                self.bar.task_ids[0], completed=self.done, rate=f"{self.rate:.1f} {self.unit}/s", values=self.values
            )
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES and self.done < self.total:
            self._print_line()

    def _print_line(self) -> None:
        if self.silent:
            return
        self.last_line = time.monotonic()
        parts = [f"{self.title}: {self.done}/{self.total} {self.unit}", f"{self.rate:.1f} {self.unit}/s", self.values]
        if self.rate > 0 and self.done < self.total:
            left = int((self.total - self.done) / self.rate)
            parts.append(f"{left // 60}:{left % 60:02d} left")
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)


class Steps:
    """Work in several steps that are known only as they come: `show` is told the step and how far it is."""

    def __init__(self, unit: str, scale: float = 1) -> None:
        self.unit, self.scale = unit, scale
        self.bar: Progress | None = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.__exit__(kind, value, traceback)
            self.bar = None

    def show(self, title: str, done: float, total: float) -> None:
        """`done` of `total`, both in units of 1 / `scale`; another title ends one bar and begins the next."""
        now = int(done / self.scale)
        if self.bar is None or self.bar.title != title:
            self.__exit__(None, None, None)
            self.bar = Progress(title, max(1, round(total / self.scale)), self.unit, now).__enter__()
        self.bar.advance(now - self.bar.done)


def _terminal_bar(title: str, total: int, unit: str, done: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task(title, total=total, completed=done, rate="", values="")
    return bar
