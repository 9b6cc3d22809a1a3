"""The sheet of pictures that the pages of the methods show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ENLARGED, GAP = 2, 8

Picture = npt.NDArray[np.uint8]


def save_sheet(rows: Sequence[Sequence[Picture]], name: str, colours: int = 256) -> None:
    """Write `name` beside this file: rows of pictures (H, W, 3) with white between them, enlarged."""
    large = Image.fromarray(grid(rows))
    large = large.resize((large.width * ENLARGED, large.height * ENLARGED), Image.Resampling.LANCZOS)
    large.quantize(colours).save(Path(__file__).with_name(name), optimize=True)


def grid(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Pictures in rows and columns on white, each row as high as its highest."""
    height = sum(max(picture.shape[0] for picture in row) + GAP for row in rows) - GAP
    width = max(sum(picture.shape[1] + GAP for picture in row) for row in rows) - GAP
    sheet, top = np.full((height, width, 3), 255, np.uint8), 0
    for row in rows:
        left = 0
        for picture in row:
            sheet[top:, left:][: picture.shape[0], : picture.shape[1]] = picture
            left += picture.shape[1] + GAP
        top += max(picture.shape[0] for picture in row) + GAP
    return sheet
