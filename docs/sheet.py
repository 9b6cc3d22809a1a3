"""What the scripts share that make the pictures of the methods' pages: images of a run, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from weakseg.data.dataset import Sample
from weakseg.labels import VOID
from weakseg.report.folder import RunFolder
from weakseg.report.pictures import painted

ENLARGED, GAP = 2, 8

Picture = npt.NDArray[np.uint8]


def training_samples(run: Path, least_classes: int = 0) -> list[Sample]:
    """The images that a run learned from, in order: those that show so many classes at least."""
    _, parts = RunFolder.read(run).open_data()
    return [sample for sample in parts["train"].values() if len(sample.labels.present()) >= least_classes]


def ground_truth(image: Picture, sample: Sample) -> Picture:
    """The true mask of a sample on its image."""
    assert sample.mask is not None
    return painted(image, sample.mask.read())


def with_white_void(image: Picture, labels: Picture) -> Picture:
    """Labels (H, W) on an image, white where they are void."""
    return np.where((labels == VOID)[..., None], np.uint8(255), painted(image, labels))


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
