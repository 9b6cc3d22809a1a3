"""Tables of numbers in plain text, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weakseg.data.cooccurrence import share_with_other

ABSENT = "–"
Cells = tuple[list[str], list[list[str]]]
"""The header of a table, and its rows."""


def companion_cells(names: Sequence[str], with_both: npt.NDArray[np.int64], most: int = 3) -> Cells:
    """The header and the cells of a table of classes: the `most` other classes that are most often in images with
    them, in percent of these, and how many images there are. `with_both` is that of `data.cooccurrence`."""
    cells = []
    for place, (name, shares) in enumerate(zip(names, share_with_other(with_both), strict=True)):
        others = [k for k in np.argsort(-with_both[place], kind="stable") if k != place and with_both[place, k]]
        seen = ", ".join(f"{names[k]} {100 * shares[k]:.0f} %" for k in others[:most])
        cells.append([name, seen or ABSENT, str(with_both[place, place])])
    return ["class", "most often with", "images"], cells


def percent(score: float | None) -> str:
    """A fraction of 1 as percent with one decimal; a dash for a score that is not defined."""
    return ABSENT if score is None else f"{100 * score:.1f}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Columns wide enough for everything, the first `texts` aligned to the left and the others to the right."""
    from rich.cells import cell_len  # Chinese characters are two columns wide

    lines = [header, *rows]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = zip(line, gaps, strict=True)
        return "  ".join(cell + gap if place < texts else gap + cell for place, (cell, gap) in enumerate(cells))

    return "\n".join([aligned(header), "  ".join("─" * width for width in widths), *map(aligned, rows)])
