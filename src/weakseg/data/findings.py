"""What is wrong with a data set, gathered while reading it, so that a user mends everything in one go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weakseg.errors import WeaksegError

SHOWN = 20


@dataclass
class Report:
    """`problems` keep a data set from being used; `notes` are things worth knowing. One sentence or two each."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def reading(root: Path, report: Report | None) -> Iterator[Report]:
    """The report that a reader fills: the caller's own, or else a new one whose problems end in one error.

    Raises `WeaksegError` with the first 20 problems, and how many more there are, where nobody gave a report.
    """
    if report is not None:
        yield report
        return
    own = Report()
    yield own
    if own.problems:
        raise WeaksegError(_summary(root, own.problems))


def _summary(root: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = [f"{root} has {len(problems)} problems:", *(f"- {text}" for text in problems[:SHOWN])]
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more; `weakseg data check` lists them all.")
    return "\n".join(lines)
