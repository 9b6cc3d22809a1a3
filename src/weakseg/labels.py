"""The vocabulary of labels: classes, void, and the four kinds of weak label.

Label values are the same everywhere in memory and in the files that weakseg writes: 0 is background, 1 … C
are the classes in the order of their names, 255 is void (pixels that nobody judges). Data sets whose files use
other numbers are translated when they are read.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from weakseg.errors import WeaksegError

BACKGROUND = 0
VOID = 255
UNLABELLED = 254
"""In partial label maps only (`ops.partial`): a pixel that takes part, but whose label nobody knows."""
MAX_CLASSES = VOID - 1
RESERVED = ("background", "void")


@dataclass(frozen=True)
class Classes:
    """The foreground classes of a data set, in order; the class at index k has label k + 1.

    Raises `WeaksegError` for an empty list, an empty, reserved or repeated name, or more than 254 classes.
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "names", tuple(names))
        if not self.names:
            raise WeaksegError("A data set needs at least one class besides the background; none was given.")
        if len(self.names) > MAX_CLASSES:
            raise WeaksegError(f"{len(self.names)} classes were given; masks of 8 bits hold at most {MAX_CLASSES}.")
        for name in self.names:
            if not name.strip():
                raise WeaksegError("A class name is empty.")
            if folded(name) in RESERVED:
                raise WeaksegError(
                    f'"{name}" is reserved: background (0) and void (255) are always there. List the other classes.'
                )
            if self.names.count(name) > 1:
                raise WeaksegError(f'The class "{name}" is listed twice.')

    def __len__(self) -> int:
        return len(self.names)

    def own_values(self) -> dict[int, int]:
        """The values of masks whose files hold labels themselves: each means itself."""
        return {label: label for label in (*range(len(self) + 1), VOID)}

    def label(self, name: str) -> int:
        """The label (1 … C) of a class name; an unknown name raises with the nearest known one."""
        if name in self.names:
            return self.names.index(name) + 1
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise WeaksegError(f'Unknown class "{name}".{hint} The classes are: {", ".join(self.names)}.')

    def mirrored(self) -> list[int]:
        """What each label 0 … C becomes when an image is turned from left to right: "left NAME" becomes "right NAME",
        where both are classes, and the reverse. All others stay as they are."""
        sides = {"left": "right", "right": "left"}
        turned = list(range(1 + len(self)))
        for label, name in enumerate(self.names, start=1):
            side, _, rest = name.partition(" ")
            if side in sides and (other := f"{sides[side]} {rest}") in self.names:
                turned[label] = self.label(other)
        return turned

    def name(self, label: int) -> str:
        """The name of a label: 0 is "background", 255 "void", k the k-th class."""
        if label == BACKGROUND:
            return "background"
        return "void" if label == VOID else self.names[label - 1]


def folded(name: str) -> str:
    """A class name without what people do not see or mean: case, spaces, hyphens, underscores, invisible characters."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(
        c for c in plain if not c.isspace() and c not in "-_" and unicodedata.category(c) not in ("Cf", "Cc")
    )


def visible(name: str) -> str:
    """A name with its invisible characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


@dataclass(frozen=True)
class Box:
    """All pixels of one object lie in columns x0 … x1 - 1 and rows y0 … y1 - 1 (pixels, half-open)."""

    label: int
    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Point:
    """The pixel at column x, row y has this label (0 marks background)."""

    label: int
    x: int
    y: int


@dataclass(frozen=True)
class Scribble:
    """The pixels along a polyline of (x, y) vertices have this label (0 marks background)."""

    label: int
    points: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WeakLabels:
    """What is known of one image without a mask. Tags are labels 1 … C; `None` where nobody tagged the image,
    which is not the same as an empty set (an image without any object). `difficult` are the classes of which all
    objects in the image are marked as hard to recognise, as in PASCAL VOC."""

    tags: frozenset[int] | None = None
    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    scribbles: tuple[Scribble, ...] = ()
    difficult: frozenset[int] = frozenset()

    def present(self) -> frozenset[int]:
        """The labels (1 … C) that occur in the image according to any of its labels, in one set."""
        spatial: Sequence[Box | Point | Scribble] = (*self.boxes, *self.points, *self.scribbles)
        named = {item.label for item in spatial if item.label != BACKGROUND}
        return frozenset(named) | (self.tags or frozenset())

    def without_difficult(self) -> WeakLabels:
        """The same without the difficult classes, unless all are."""
        if self.difficult >= self.present():
            return self
        boxes = tuple(box for box in self.boxes if box.label not in self.difficult)
        return replace(self, tags=self.tags and self.tags - self.difficult, boxes=boxes)

    @property
    def known(self) -> bool:
        """Whether anything at all is known of the image."""
        return self.tags is not None or bool(self.boxes or self.points or self.scribbles)


def tags_of(labels: Iterable[int]) -> frozenset[int]:
    """The tags that a set of mask values implies: background and void dropped."""
    return frozenset(int(v) for v in labels) - {BACKGROUND, VOID}


def palette() -> list[int]:
    """The 256 PASCAL VOC colours as a flat list of R, G, B values: label bits spread over the three channels."""
    colours = []
    for label in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((label >> (3 * bit + channel)) & 1) << (7 - bit)
        colours += rgb
    return colours
