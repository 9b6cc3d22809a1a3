"""What is wrong with a data set, gathered while reading it, so that a user mends everything in one go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from weakseg.errors import WeaksegError
from weakseg.files import read_text

SHOWN = 20

Places = dict[str, list[str]]


@dataclass
class Report:
    """`problems` keep a data set from being used; `notes` are things worth knowing. One sentence or two each.
    `contents` are lines that say what the data set holds, `faulty` the images whose labels are incomplete because
    of a problem, so that what they lack is nothing to report again.

    Findings of the same text at several places are one: it names the first place and counts the others. A note on a
    place waits until the problems there are mended, since most often both come from one mistake.
    """

    _problems: Places = field(default_factory=dict)
    _notes: Places = field(default_factory=dict)
    contents: list[str] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)

    def problem(self, text: str, where: str | None = None, image: str | None = None) -> None:
        """Add a problem; `where` is its file and line, entry or image, unless the text names it. `image` is the image
        whose labels it makes incomplete."""
        self._problems.setdefault(text, []).extend([] if where is None else [where])
        if image is not None:
            self.faulty.add(image)

    def note(self, text: str, where: str | None = None) -> None:
        """Add a note, as `problem` does."""
        self._notes.setdefault(text, []).extend([] if where is None else [where])

    @property
    def problems(self) -> list[str]:
        return [_sentence(text, places) for text, places in self._problems.items()]

    @property
    def notes(self) -> list[str]:
        faulty = {place for places in self._problems.values() for place in places}
        sound = {text: [place for place in places if place not in faulty] for text, places in self._notes.items()}
        return [_sentence(text, places) for text, places in sound.items() if places or not self._notes[text]]


def _sentence(text: str, places: list[str]) -> str:
    if not places:
        return text
    others = f" (and {len(places) - 1} more, {len(places)} in all)" if len(places) > 1 else ""
    return f"{places[0]}{others}: {text}"


class Reported(WeaksegError):
    """Reading cannot go on, and the report says why."""


def text_of(path: Path, report: Report) -> str:
    """The text of a file that people wrote: UTF-8 or, with a note, Windows-1252."""
    text, foreign = read_text(path, fallback="cp1252")
    if foreign:
        report.note("the file is not UTF-8; it was read as Windows-1252. Look at the names in it.", str(path))
    return text


@contextmanager
def reading(root: Path, report: Report | None) -> Iterator[Report]:
    """The report that a reader fills: the caller's own, or else a new one whose problems end in one error.

    Raises `WeaksegError` with the first 20 problems, and how many more there are, where nobody gave a report.
    """
    if report is not None:
        yield report
        return
    own = Report()
    try:
        yield own
    except Reported:
        pass
    except WeaksegError as error:
        own.problem(str(error))
    if own.problems:
        raise WeaksegError(_summary(root, own.problems))


def _summary(root: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = [f"{root} has {len(problems)} problems:", *(f"- {text}" for text in problems[:SHOWN])]
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more; `weakseg data check` lists them all.")
    return "\n".join(lines)
