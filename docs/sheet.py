"""The sheet of pictures that the pages of the methods show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ENLARGED, GAP = 2, 8


def save_sheet(rows: Sequence[Sequence[npt.NDArray[np.uint8]]], name: str, colours: int = 256) -> None:
    """Write `name` beside this file: rows of pictures (H, W, 3) of one size with white between them, enlarged."""
    height, width = rows[0][0].shape[:2]
    sheet = np.full((len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet[row * (height + GAP) :, column * (width + GAP) :][:height, :width] = picture
    large = Image.fromarray(sheet)
    large = large.resize((large.width * ENLARGED, large.height * ENLARGED), Image.Resampling.LANCZOS)
    large.quantize(colours).save(Path(__file__).with_name(name), optimize=True)
