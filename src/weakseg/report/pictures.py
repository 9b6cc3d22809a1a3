"""Small pictures of images, activation maps and label maps, to be put into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from weakseg.data.images import overlay
from weakseg.labels import BACKGROUND, Classes

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]

MAX_SIDE = 288
"""The longer side of a picture in pixels; two thirds of it are shown on most screens."""

SHEET_COLUMNS = 6

QUALITY = 75
"""Of JPEG files. A picture has about 10 kB."""


def photo(image: Pixels) -> Pixels:
    """An image (H, W, 3) as large as the report shows it."""
    return np.asarray(Image.fromarray(image).resize(_small(image.shape), Image.Resampling.LANCZOS))


def painted(image: Pixels, labels: Pixels) -> Pixels:
    """Labels (H, W) in their colours on the image (H, W, 3), which turns grey so that no colour is mistaken."""
    small = Image.fromarray(labels).resize(_small(labels.shape), Image.Resampling.NEAREST)
    return overlay(_grey(photo(image)), np.asarray(small), alpha=0.65)


def heat_map(image: Pixels, activation: npt.NDArray[np.float32]) -> Pixels:
    """An activation map (H, W) in 0 … 1 on the grey image (H, W, 3): black-violet is 0, yellow is 1."""
    import matplotlib

    size = _small(activation.shape)
    small = np.asarray(Image.fromarray(activation).resize(size, Image.Resampling.BILINEAR))
    heat = matplotlib.colormaps["inferno"](small)[..., :3] * 255
    return np.round(0.35 * _grey(photo(image)) + 0.65 * heat).astype(np.uint8)


def heat(values: npt.NDArray[np.float32]) -> Pixels:
    """A map (h, w) in 0 … 1 of no image, its cells as large as the report shows pictures: black-violet is 0, yellow
    is 1."""
    import matplotlib

    height, width = values.shape
    factor = max(1, MAX_SIDE // max(height, width))
    colours = np.round(matplotlib.colormaps["inferno"](values)[..., :3] * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(colours).resize((width * factor, height * factor), Image.Resampling.NEAREST))


def in_mean_colours(image: Pixels, superpixels: npt.NDArray[np.int32]) -> Pixels:
    """An image (H, W, 3) whose superpixels (H, W) have their mean colours and white outlines."""
    _, ids, sizes = np.unique(superpixels, return_inverse=True, return_counts=True)
    ids = ids.reshape(superpixels.shape)
    sums = [np.bincount(ids.ravel(), image[..., channel].ravel()) for channel in range(3)]
    picture = (np.stack(sums, axis=1) / sizes[:, None]).astype(np.uint8)[ids]
    picture[:, :-1][ids[:, :-1] != ids[:, 1:]] = 255
    picture[:-1][ids[:-1] != ids[1:]] = 255
    return picture


def contact_sheet(cutouts: Sequence[tuple[Pixels, npt.NDArray[np.bool_]]]) -> Pixels:
    """Objects in squares of one size, on white, from left to right and from top to bottom; each is an image (h, w, 3)
    and the mask (h, w) of what is shown of it."""
    columns = min(SHEET_COLUMNS, len(cutouts))
    cell = MAX_SIDE // SHEET_COLUMNS
    sheet = Image.new("RGB", (columns * cell, -(-len(cutouts) // columns) * cell), "white")
    for number, (image, inside) in enumerate(cutouts):
        opacity = Image.fromarray(np.where(inside, np.uint8(255), np.uint8(0)))
        picture = Image.fromarray(image)
        picture.putalpha(opacity)
        picture.thumbnail((cell - 4, cell - 4))
        row, column = divmod(number, columns)
        sheet.paste(picture, (column * cell + 2, row * cell + 2), picture)
    return np.asarray(sheet)


def data_uri(pixels: Pixels) -> str:
    """Pixels (H, W, 3) as the address of a JPEG that is its own file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def css_colours(labels: Iterable[int]) -> dict[int, str]:
    """The colours in which `painted` shows labels on middle grey, such as "#a03c3c"."""
    grey = np.full((1, 1, 3), 128, np.uint8)
    return {label: "#" + overlay(grey, np.full((1, 1), label), 0.65).tobytes().hex() for label in labels}


def shares(labels: Pixels, classes: Classes) -> str:
    """What a label map shows, in words: "dog 34 %, cat 5 %", the largest class first."""
    counts = np.bincount(labels.ravel())
    there = [label for label in np.argsort(-counts, kind="stable") if counts[label] and label != BACKGROUND]
    named = [f"{classes.name(label)} {100 * counts[label] / labels.size:.0f} %" for label in there]
    return ", ".join(named) or "only background"


def ranked(scores: Mapping[str, float | None], count: int) -> dict[str, list[str]]:
    """The `count` best, middle and worst names each, in falling order; all of them where there are no more than that.
    Names without a score are left out."""
    known = {name: score for name, score in scores.items() if score is not None}
    order = sorted(known, key=lambda name: (-known[name], name))
    if len(order) <= 3 * count:
        return {"All, from best to worst": order}
    middle = (len(order) - count) // 2
    return {"Best": order[:count], "Middle": order[middle : middle + count], "Worst": order[-count:]}


def spread(names: Sequence[T], count: int) -> list[T]:
    """`count` items at equal distances over a list."""
    return [names[place] for place in np.unique(np.linspace(0, len(names) - 1, count).round().astype(int)).tolist()]


def _grey(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _small(shape: Sequence[int]) -> tuple[int, int]:
    """(width, height) of a picture of the shape (H, W, …), which is never enlarged."""
    height, width = shape[:2]
    factor = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))
