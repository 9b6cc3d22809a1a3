"""The vocabulary of labels: classes, void, and the four kinds of weak label.

Labels are the same everywhere in memory: 0 is background, 1 … C are the classes in the order of their names, 255 is
void (pixels that nobody judges). They are those of 8-bit masks, too. Data sets whose files use other numbers are
translated when they are read.

More than 254 classes need 16 bits. Their labels leave out 254 and 255, so that these mean the same in every label
map: 1 … 253, 256, 257, …. Networks have an output for the two, as for every label up to the largest, but nothing is
taught to it and it is never predicted. 16-bit masks have no such gap: 1 … C, and void is 65535 (`data.images`).
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError

BACKGROUND = 0
VOID = 255
VOID_OF_16_BITS = 65535
"""The value of void in 16-bit files."""
UNLABELLED = 254
"""In partial label maps only (`ops.partial`): a pixel that takes part, but whose label nobody knows."""
MAX_CLASSES_OF_8_BITS = VOID - 1
MAX_CLASSES = 32_000
"""Files of instances hold labels as int16."""
RESERVED = ("background", "void")


@dataclass(frozen=True)
class Classes:
    """The foreground classes of a data set, in order.

    Raises `WeaksegError` for an empty list, an empty, reserved or repeated name, or more than 32,000 classes.
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "names", tuple(names))
        if not self.names:
            raise WeaksegError("A data set needs at least one class besides the background; none was given.")
        if len(self.names) > MAX_CLASSES:
            raise WeaksegError(f"{len(self.names)} classes were given; at most {MAX_CLASSES} are possible.")
        counts = Counter(self.names)
        for name in self.names:
            if not name.strip():
                raise WeaksegError("A class name is empty.")
            if folded(name) in RESERVED:
                raise WeaksegError(
                    f'"{name}" is reserved: background (0) and void (255) are always there. List the other classes.'
                )
            if counts[name] > 1:
                raise WeaksegError(f'The class "{name}" is listed twice.')

    def __len__(self) -> int:
        return len(self.names)

    @property
    def deep(self) -> bool:
        """Whether the labels need 16 bits."""
        return len(self) > MAX_CLASSES_OF_8_BITS

    @cached_property
    def labels(self) -> range | tuple[int, ...]:
        """The labels of the classes, in order."""
        places = range(1, len(self) + 1)
        return tuple(place + 2 * (place >= UNLABELLED) for place in places) if self.deep else places

    @property
    def largest(self) -> int:
        """The largest label; networks tell 0 … `largest` apart."""
        return self.labels[-1]

    def numbered(self) -> Iterator[tuple[int, str]]:
        """(label, name) of each class, in order."""
        return zip(self.labels, self.names, strict=True)

    def own_values(self) -> dict[int, int]:
        """What the values of masks mean that weakseg writes for these classes: value → label."""
        return {BACKGROUND: BACKGROUND, **dict(enumerate(self.labels, start=1)), self.void_value: VOID}

    @property
    def void_value(self) -> int:
        """The value of void in masks that weakseg writes for these classes."""
        return VOID_OF_16_BITS if self.deep else VOID

    def label(self, name: str) -> int:
        """The label of a class name; an unknown name raises with the nearest known one."""
        if name in self.names:
            return self.labels[self.names.index(name)]
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise WeaksegError(f'Unknown class "{name}".{hint} The classes are: {", ".join(self.names)}.')

    def mirrored(self) -> list[int]:
        """What each label 0 … `largest` becomes when an image is turned from left to right: "left NAME" becomes "right
        NAME", where both are classes, and the reverse. All others stay as they are."""
        sides = {"left": "right", "right": "left"}
        turned = list(range(1 + self.largest))
        for label, name in self.numbered():
            side, _, rest = name.partition(" ")
            if side in sides and (other := f"{sides[side]} {rest}") in self.names:
                turned[label] = self.label(other)
        return turned

    def name(self, label: int) -> str:
        """The name of a label: 0 is "background", 255 "void"; one that is no class is an "unknown label"."""
        if label in (BACKGROUND, VOID):
            return "void" if label else "background"
        known = label in self.labels
        return self.names[self.labels.index(label)] if known else f"unknown label {label}"


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


def label_array(labels: Iterable[int] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels as an array of 8 bits, of 16 where one of them needs that."""
    array = np.asarray(labels if isinstance(labels, np.ndarray) else list(labels))
    return array.astype(np.uint8 if array.max(initial=0) <= VOID else np.uint16)


def judged_labels(count: int) -> npt.NDArray[np.intp]:
    """Of the labels 0 … count - 1 those that may stand for the background or a class."""
    labels = np.arange(count)
    return labels if count <= VOID else labels[(labels != UNLABELLED) & (labels != VOID)]


def palette(count: int = 256) -> list[int]:
    """The PASCAL VOC colours of the first labels as a flat list of R, G, B values: label bits spread over the three
    channels."""
    bits = (np.arange(count)[:, None] >> np.arange(24) & 1).reshape(count, 8, 3)
    colours: list[int] = (bits << np.arange(7, -1, -1)[:, None]).sum(1).ravel().tolist()
    return colours
