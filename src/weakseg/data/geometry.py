"""Coordinates as label files give them, and one rule for all readers of what to make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from weakseg.data.findings import Report
from weakseg.data.images import image_size
from weakseg.errors import WeaksegError
from weakseg.labels import Box
from weakseg.settings import shown

Size = tuple[int, int]

LARGEST = 1e6
"""No coordinate of ours is as far from 0, in pixels."""


class Places:
    """Makes numbers, boxes and points of what label files say, and reports what it had to change."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def number(self, value: object, what: str, where: str) -> float:
        """A finite number, perhaps written as text; raises `WeaksegError` for anything else."""
        try:
            if value is None or isinstance(value, bool):
                raise TypeError
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise WeaksegError(f"{what}, found {shown(value)}.") from None
        if not abs(number) <= LARGEST:
            raise WeaksegError(f"{what}, found {shown(value)}.")
        if isinstance(value, str):
            self.report.note("numbers are written as text; they were read as numbers.", where)
        return number

    def numbers(self, values: object, count: int, what: str, where: str) -> list[float]:
        """A list of so many finite numbers."""
        if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) != count:
            raise WeaksegError(f"{what}, found {shown(values)}.")
        return [self.number(value, what, where) for value in values]

    def box(self, label: int, sides: Sequence[float], size: Size | None, where: str) -> Box:
        """The box of left, top, right and bottom sides widened to whole pixels, at least one, and cut to the image.

        `size` is (H, W), None where the image cannot be read. Raises `WeaksegError` for a box outside the image.
        """
        height, width = size or (math.inf, math.inf)
        left, top, right, bottom = sides
        wide = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        x0, y0 = max(wide[0], 0), max(wide[1], 0)
        x1 = int(min(max(wide[2], wide[0] + 1), width))
        y1 = int(min(max(wide[3], wide[1] + 1), height))
        if right < left or bottom < top or x0 >= x1 or y0 >= y1:
            place = "the image" if size is None else f"the image of {height} × {width} pixels (height × width)"
            raise WeaksegError(f"the box {_listed(sides)} (left, top, right, bottom) is empty or lies outside {place}.")
        if wide[0] < 0 or wide[1] < 0 or wide[2] > width or wide[3] > height:
            self.report.note("a box reached over the edge of its image and was cut to it.", where)
        if left == right or top == bottom:
            self.report.note("a box has no area; it was widened to one pixel.", where)
        self._note_fractions(sides, size, where)
        return Box(label, x0, y0, x1, y1)

    def pixel(self, x: float, y: float, size: Size | None, where: str) -> tuple[int, int]:
        """The pixel (x, y) that a position lies in; one on the very edge of the image belongs to its last pixel.

        Raises `WeaksegError` for a position outside the image.
        """
        height, width = size or (math.inf, math.inf)
        if not (-1 <= x <= width and -1 <= y <= height):
            place = "the image" if size is None else f"the image of {height} × {width} pixels (height × width)"
            raise WeaksegError(f"the point {_listed((x, y))} lies outside {place}.")
        self._note_fractions((x, y), size, where)
        column, row = math.floor(x), math.floor(y)
        inside = int(min(max(column, 0), width - 1)), int(min(max(row, 0), height - 1))
        if inside != (column, row):
            self.report.note("a point on the edge of its image was moved into it.", where)
        return inside

    def _note_fractions(self, numbers: Sequence[float], size: Size | None, where: str) -> None:
        inside = all(0 <= number <= 1 for number in numbers) and not all(number.is_integer() for number in numbers)
        if inside and size is not None and max(size) > 1:
            self.report.note("all lies in the first pixel. Coordinates are pixels, not shares of the image.", where)


def size_of(image: Path) -> Size | None:
    """(H, W) of an image, None where it cannot be read, which is another's business."""
    try:
        return image_size(image)
    except WeaksegError:
        return None


def _listed(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"
