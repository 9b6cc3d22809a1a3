"""CDA: objects are pasted where they are seldom seen, so that a classifier looks at them and not at their surroundings.

Su, Sun, Lin, Wu, "Context Decoupling Augmentation for Weakly Supervised Semantic Segmentation", ICCV 2021
(arXiv 2103.01795). An augmentation for the training of any localiser, whose network and losses stay what they are.

I.  The pool. Pseudo-masks of an earlier round with one class that covers 10 to 70 % of the image give crops: the
    bounding box of the class, with the opacity 1 inside of the mask.
II. Pairs. With an image x of the tags y, a class c that is not in y, and a crop o of c, both drawn uniformly:

        x' = M ∘ T(o) + (1 - M) ∘ x        T turns and shrinks o and puts it anywhere, M is its mask after that
        y' = y ∪ {c}
        L  = ½ L_base(x, y) + ½ L_base(x', y')

    x and x' are augmented further, each for itself. Half of the images of a batch are originals.

A crop is reduced to 0.7 of the sides of x at most, and never enlarged to that. By default image and mask are warped
once, bilinearly, and the colours at the border of the object are mixed from the object alone. `parity` is the form of
the authors' program: cubic splines that are resized bilinearly afterwards, a mask that holds the number of the class
and so grows with it, and a learning rate that falls in the first half of the training only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from weakseg.data.images import read_cutout, write_image
from weakseg.data.loading import Draw, TrainingImages, generator
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.labels import BACKGROUND, VOID, Classes
from weakseg.methods import base

Size = tuple[int, int]
"""(height, width) in pixels."""
Inside = npt.NDArray[np.bool_]
"""(h, w), true on the object."""
Variant = Literal["rotate", "scale", "rotate_blur"]

LARGEST_SHARE = 0.7
"""Of the sides of an image that a crop may have."""
SCALES = (0.8, 1.2)
LARGEST_ANGLE = 90
PASTING_STREAM = 2
"""The randomness of a pasted image is not that of the original, which stays what it is without pasting."""

logger = logging.getLogger(__name__)


class Settings(base.Settings):
    """`rotate` turns crops by up to 90°, `rotate_blur` also softens their border, `scale` changes their size by up to a
    fifth instead."""

    variant: Variant = Field(default="rotate", description="what is done to objects before they are pasted")
    fewest_crops: int = Field(
        default=10, ge=1, description="of a class that is pasted; fewer would be known by heart, with their faults"
    )
    parity: bool = Field(
        default=False,
        description="warp objects as the authors' program does; slow. Its learning rate is train.falls_until=0.5",
    )


# The pool -------------------------------------------------------------------------------------------------------------


class Cutout(NamedTuple):
    """An object of the class `label` cut out of an image: `image` uint8 (h, w, 3), the mask `inside` bool (h, w)."""

    label: int
    image: base.Image
    inside: Inside


def simple_label(mask: npt.NDArray[np.uint8], smallest: float, largest: float) -> int | None:
    """The class of a label map (H, W) that shows no other, if its share of the pixels is in [smallest, largest]."""
    labels = np.flatnonzero(np.bincount(mask.ravel(), minlength=VOID + 1))
    things = labels[labels != BACKGROUND]
    if len(things) != 1 or things[0] == VOID:
        return None
    share = np.count_nonzero(mask) / mask.size
    return int(things[0]) if smallest <= share <= largest else None


def cut_out(image: base.Image, mask: npt.NDArray[np.uint8]) -> Cutout:
    """All that a label map (H, W) with one class marks on an image (H, W, 3), in its bounding box, holes kept."""
    inside = mask != BACKGROUND
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Cutout(int(mask.max()), image[box], inside[box])


@dataclass(frozen=True)
class Pool:
    """Crops in a folder: `crops/LABEL/NAME.png`, transparent outside of the object, and `index.json`.

    `names` are those of the images that the crops come from, for the labels 1, 2, ….
    """

    folder: Path
    names: Sequence[Sequence[str]]

    @classmethod
    def load(cls, folder: Path, classes: Classes) -> Pool:
        """Raises `WeaksegError` for an index that is damaged or of other classes."""
        path = folder / "index.json"
        index = read_json(path)
        fault = f"{path} is no index of a pool with the classes {', '.join(classes.names)}. Delete it and run again."
        if not isinstance(index, dict) or list(index) != list(classes.names):
            raise WeaksegError(fault)
        if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in index.values()):
            raise WeaksegError(fault)
        by_label: list[Sequence[str]] = [()] * classes.largest
        for label, name in classes.numbered():
            by_label[label - 1] = index[name]
        return cls(folder, by_label)

    @staticmethod
    def write_index(folder: Path, classes: Classes, names: Mapping[int, Sequence[str]]) -> None:
        """`names` are those of the crops by label; a class without crops may be left out."""
        index = {name: list(names.get(label, ())) for label, name in classes.numbered()}
        write_json(folder / "index.json", index)

    @staticmethod
    def path(folder: Path, label: int, name: str) -> Path:
        """Where a crop lies."""
        return folder / "crops" / str(label) / f"{name}.png"

    @staticmethod
    def write(folder: Path, name: str, cutout: Cutout) -> None:
        """Write one crop, atomically."""
        opacity = np.where(cutout.inside, np.uint8(255), np.uint8(0))
        write_image(Pool.path(folder, cutout.label, name), np.dstack([cutout.image, opacity]))

    def read(self, label: int, name: str) -> Cutout:
        """One crop; raises `WeaksegError` where it is missing or damaged."""
        pixels = read_cutout(self.path(self.folder, label, name))
        return Cutout(label, pixels[..., :3], pixels[..., 3] > 127)

    @property
    def labels(self) -> list[int]:
        """The classes that have crops."""
        return [label for label, names in enumerate(self.names, start=1) if names]

    def labels_below(self, count: int) -> list[int]:
        """The classes that have crops, but fewer."""
        return [label for label in self.labels if len(self.names[label - 1]) < count]

    def with_at_least(self, count: int) -> Pool:
        """The pool without classes that have fewer crops."""
        return replace(self, names=[names if len(names) >= count else () for names in self.names])

    def draw(self, present: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[int, str] | None:
        """A class that is absent from the tags `present` (C,), each as likely as any other, and the name of a crop
        of it; None where all classes with crops are present."""
        absent = [label for label in self.labels if not present[label - 1]]
        if not absent:
            return None
        label = absent[int(rng.integers(len(absent)))]
        names = self.names[label - 1]
        return label, names[int(rng.integers(len(names)))]


# Pasting --------------------------------------------------------------------------------------------------------------


class Placing(NamedTuple):
    """A crop is turned by `degrees` (counter-clockwise), brought to `size` and put at `row`, `column`."""

    degrees: int
    size: Size
    row: int
    column: int


def draw_placing(crop: Size, background: Size, variant: Variant, rng: np.random.Generator) -> Placing:
    """Where a crop of a size comes to lie on an image of a size. Drawn in this order: angle or factor, row, column."""
    degrees, factor = 0, 1.0
    if variant == "scale":
        factor = SCALES[0] + (SCALES[1] - SCALES[0]) * rng.random()
    else:
        degrees = int(rng.integers(-LARGEST_ANGLE, LARGEST_ANGLE, endpoint=True))
    height, width = fitted(turned_size(crop, degrees), background)
    size = max(1, int(height * factor)), max(1, int(width * factor))
    row, column = (
        int(rng.integers(0, space - side, endpoint=True)) for space, side in zip(background, size, strict=True)
    )
    return Placing(degrees, size, row, column)


def turned_size(size: Size, degrees: int) -> Size:
    """The size of the smallest upright rectangle around a turned one."""
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    height, width = size
    return max(1, int(height * cos + width * sin + 0.5)), max(1, int(height * sin + width * cos + 0.5))


def fitted(size: Size, background: Size) -> tuple[float, float]:
    """Height and width in proportion to `size`, reduced to at most 0.7 of the sides of the background, not rounded."""
    height, width = map(float, size)
    ratio = width / height
    if LARGEST_SHARE * background[0] < height:
        height = LARGEST_SHARE * background[0]
        width = height * ratio
    if LARGEST_SHARE * background[1] < width:
        width = LARGEST_SHARE * background[1]
        height = width / ratio
    return height, width


def paste(background: base.Image, cutout: Cutout, settings: Settings, rng: np.random.Generator) -> base.Image:
    """A copy of an image (H, W, 3) with an object on it."""
    crop, whole = cutout.inside.shape, background.shape[:2]
    placing = draw_placing((crop[0], crop[1]), (whole[0], whole[1]), settings.variant, rng)
    warp = warp_by_splines if settings.parity else warp_once
    image, inside = warp(cutout, placing)
    pasted = background.copy()
    (height, width), row, column = placing.size, placing.row, placing.column
    place = pasted[row : row + height, column : column + width]
    if settings.variant != "rotate_blur":
        place[inside] = image[inside]
    else:
        opacity = blurred_in_parity(inside) if settings.parity else feathered(inside)
        place[...] = (opacity[..., None] * image + (1 - opacity[..., None]) * place).astype(np.uint8)
    return pasted


def warp_once(cutout: Cutout, placing: Placing) -> tuple[base.Image, Inside]:
    """The object after one bilinear warp, (h, w, 3), and its mask, (h, w). What is outside of the mask has no part in
    any colour inside."""
    opacity = np.where(cutout.inside, np.uint8(255), np.uint8(0))
    source = pillow.fromarray(np.dstack([cutout.image, opacity]))
    (crop_height, crop_width), (height, width) = cutout.inside.shape, placing.size
    turned = turned_size((crop_height, crop_width), placing.degrees)
    y, x = turned[0] / height, turned[1] / width
    cos, sin = math.cos(math.radians(placing.degrees)), math.sin(math.radians(placing.degrees))
    # Each pixel of the result, seen from its centre, comes from there in the source.
    across, down = (cos * x, -sin * y), (sin * x, cos * y)
    begin_x = crop_width / 2 - across[0] * width / 2 - across[1] * height / 2
    begin_y = crop_height / 2 - down[0] * width / 2 - down[1] * height / 2
    reduced = max(1, int(min(y, x)))  # where a bilinear warp would skip pixels, means of them are warped
    matrix = tuple(value / reduced for value in (*across, begin_x, *down, begin_y))
    # Pillow weighs the colours with their opacity.
    warped = np.asarray(
        source.reduce(reduced).transform(
            (width, height), pillow.Transform.AFFINE, matrix, resample=pillow.Resampling.BILINEAR
        )
    )
    return warped[..., :3], warped[..., 3] > 127


def warp_by_splines(cutout: Cutout, placing: Placing) -> tuple[base.Image, Inside]:
    """The crop turned by a cubic spline, then resized bilinearly, (h, w, 3), and its mask, (h, w), as in the authors'
    program: the mask holds the number of the class while it is interpolated, and then all that is not 0 counts."""
    image, labels = cutout.image, cutout.inside.astype(np.uint8) * np.uint8(cutout.label)
    if placing.degrees:
        from scipy.ndimage import rotate

        image, labels = rotate(image, placing.degrees), rotate(labels, placing.degrees)
    image, labels = (
        np.asarray(pillow.fromarray(array).resize(placing.size[::-1], pillow.Resampling.BILINEAR))
        for array in (image, labels)
    )
    return image, labels != BACKGROUND


def feathered(inside: Inside) -> npt.NDArray[np.float64]:
    """The opacity (h, w) of an object that fades out inside of its border."""
    soft = np.array([0.25, 0.5, 0.25])
    return _blurred(inside, soft, soft) * inside


def blurred_in_parity(inside: Inside) -> npt.NDArray[np.float64]:
    """The opacity (h, w) in the authors' program, whose filter is wider along columns (σ = 4, in steps of 1/256) than
    along rows, and reaches one pixel beyond the mask."""
    return _blurred(inside, np.array([84, 88, 84]) / 256, np.array([0.25, 0.5, 0.25]))


def _blurred(inside: Inside, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A mask after a separable filter with a mirrored border, in steps of 1/255."""
    from scipy.ndimage import correlate1d

    values = correlate1d(correlate1d(inside * 255.0, across, axis=1, mode="mirror"), down, axis=0, mode="mirror")
    return np.rint(values) / 255


# Pairs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PastedPairs(TorchDataset[dict[str, Tensor]]):
    """Images, and the same images with an object pasted on each, as one batch: first all originals, then all others.

    The originals are what they are without pasting. An image that has all classes of the pool is a pair with itself.
    """

    images: TrainingImages
    pool: Pool
    settings: Settings

    images_per_draw: ClassVar[int] = 2

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: Sequence[Draw]) -> list[dict[str, Tensor]]:
        originals, pasted = zip(*map(self.pair, draws), strict=True)
        return [*originals, *pasted]

    def pair(self, draw: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The original and the pasted image of a draw, both augmented."""
        item = self.images.read(draw)
        rng = generator(self.images.seed, draw, PASTING_STREAM)
        original = self.images.view(item, generator(self.images.seed, draw))
        return original, self.images.view(self.pasted(item, rng), rng)

    def pasted(self, item: base.Item, rng: np.random.Generator) -> base.Item:
        """An image and its tags with an object of another class, not yet augmented."""
        drawn = self.pool.draw(item["tags"], rng)
        if drawn is None:
            return item
        label, name = drawn
        union = item["tags"].copy()
        union[label - 1] = 1
        return {**item, "image": paste(item["image"], self.pool.read(label, name), self.settings, rng), "tags": union}


def with_pasting(
    images: TrainingImages, pool: Pool, settings: Settings, classes: Classes
) -> PastedPairs | TrainingImages:
    """Pairs of images, or just the images where no class has enough crops. It is said what is never pasted.

    Raises `WeaksegError` for fields that would show what lies under a pasted object.
    """
    if beside := [name for name, field in images.fields.items() if field.spatial]:
        raise WeaksegError(f"Objects cannot be pasted on images with the fields {', '.join(beside)}, which lack them.")
    enough = pool.with_at_least(settings.fewest_crops)
    if not enough.labels:
        logger.warning(
            "No class of the pool %s has %d crops: the classifier is trained without pasting.",
            pool.folder,
            settings.fewest_crops,
        )
        return images
    if few := [classes.name(label) for label in pool.labels_below(settings.fewest_crops)]:
        logger.warning("Fewer than %d crops, so never pasted: %s.", settings.fewest_crops, ", ".join(few))
    return PastedPairs(images, enough, settings)
