"""Windows over an image that is too large to be looked at as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

ALIGNMENT = 64
"""Windows begin at multiples of this, so that cells of features lie where those of the whole image do."""
MARGIN = 128
"""What a window sees to each side of what it decides, in pixels: neighbours overlap by twice as many."""
SMALLEST_SIDE = 4 * MARGIN


class Window(NamedTuple):
    """Rows and columns of an image that are looked at, and those among them that are decided."""

    seen: tuple[slice, slice]
    decided: tuple[slice, slice]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of what is seen."""
        rows, columns = self.seen
        return rows.stop - rows.start, columns.stop - columns.start

    def inside(self, stride: int = 1) -> tuple[slice, slice]:
        """What is decided as a part of what is seen, in cells of so many pixels."""
        pairs = zip(self.seen, self.decided, strict=True)
        rows, columns = (
            slice((decided.start - seen.start) // stride, -(-(decided.stop - seen.start) // stride))
            for seen, decided in pairs
        )
        return rows, columns


def windows(size: tuple[int, int], side: int) -> Iterator[Window]:
    """Windows of at most `side` pixels, a multiple of `ALIGNMENT`, over an image of `size` (H, W): every pixel is
    decided by one, `MARGIN` pixels from its borders or at those of the image."""
    for rows in _along(size[0], side):
        for columns in _along(size[1], side):
            seen, decided = zip(rows, columns, strict=True)
            yield Window(seen, decided)


def _along(length: int, side: int) -> Iterator[tuple[slice, slice]]:
    start, end = 0, 0
    while end < length:
        first, end = start, min(start + side, length)
        decided = slice(first + MARGIN if first else 0, end if end == length else end - MARGIN)
        yield slice(first, end), decided
        start += side - 2 * MARGIN


def side_for(pixels: float) -> int:
    """The side of windows of so many pixels."""
    return max(SMALLEST_SIDE, int(math.sqrt(pixels)) // ALIGNMENT * ALIGNMENT)


def cells(window: tuple[slice, slice], stride: int) -> tuple[slice, slice]:
    """Rows and columns in cells of so many pixels; they begin at multiples of it."""
    rows, columns = (slice(part.start // stride, -(-part.stop // stride)) for part in window)
    return rows, columns
