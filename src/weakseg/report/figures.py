"""Pictures with captions, and what is shown of an image beside it. Nothing here knows of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from weakseg.data.dataset import Sample
from weakseg.labels import Classes
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.resize import resize_labels
from weakseg.report import pictures
from weakseg.report.markup import Markup, element
from weakseg.report.pictures import Pixels
from weakseg.report.tables import percent

MAX_HEAT_MAPS = 3
"""The activation maps of so many classes of one image are shown."""


def figure(pixels: Pixels, caption: str, description: str) -> Markup:
    """A picture (H, W, 3) with a caption; `description` says what it shows to those who cannot see it."""
    height, width = pixels.shape[:2]
    picture = element("img", src=pictures.data_uri(pixels), alt=description, width=width, height=height)
    return element("figure", picture, element("figcaption", caption))


def strip(figures: Iterable[Markup], columns: int | None = None) -> Markup:
    """Figures beside each other in so many columns, or in as many as the element around the strip says."""
    return element("div", *figures, class_="strip", **({} if columns is None else {"style": f"--columns:{columns}"}))


@dataclass(frozen=True)
class Shown:
    """An image of a run, uint8 (H, W, 3), which other pictures are shown beside: `part` is the one it plays in the run
    ("train", "score" or "val")."""

    part: str
    sample: Sample
    image: Pixels
    classes: Classes

    @cached_property
    def small(self) -> Pixels:
        """The image as large as it is shown, which the other pictures lie on."""
        return pictures.photo(self.image)

    @property
    def weakly_labelled(self) -> bool:
        """Whether maps and pseudo-masks are made of it."""
        return self.part != "val"

    def photo(self) -> Markup:
        """The image itself with its tags."""
        tags = ", ".join(self.classes.name(label) for label in sorted(self.sample.labels.present()))
        caption = f"image, tagged {tags}" if tags else "image"
        return figure(self.small, caption, f"Image {self.sample.name}")

    def label_map(self, labels: npt.NDArray[np.uint8], title: str, iou: float | None = None) -> Markup:
        """A label map (H, W), with its IoU where that is known."""
        if self.sample.long_side:
            labels = resize_labels(labels, self.sample.size())
        caption = title if iou is None else f"{title}: IoU {percent(iou)} %"
        description = f"{_begun(title)} of {self.sample.name}: {pictures.shares(labels, self.classes)}"
        return figure(pictures.painted(self.small, labels), caption, description)

    def heat_maps(self, maps: ActivationMaps, title: str) -> Iterator[Markup]:
        """The activation maps of the first classes; it is said how many more there are."""
        pairs = list(zip(maps.labels.tolist(), maps.upsampled(), strict=True))[maps.has_background :]
        more = len(pairs) - MAX_HEAT_MAPS
        for place, (label, activation) in enumerate(pairs[:MAX_HEAT_MAPS], start=1):
            name = self.classes.name(label)
            caption = f"{title}: {name}"
            if place == MAX_HEAT_MAPS and more > 0:
                caption += f" (and {more} more)"
            description = f"{_begun(title)} of {name}, {self.sample.name}"
            yield figure(pictures.heat_map(self.small, activation), caption, description)


def _begun(title: str) -> str:
    """A title as the beginning of a sentence."""
    return title[:1].upper() + title[1:]
