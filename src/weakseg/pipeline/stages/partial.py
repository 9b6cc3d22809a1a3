"""Partial label maps of whatever weak labels an image has. Artifact: one palette PNG per image, where 254 is unlabelled
and 255 void (see `ops.partial`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.images import image_size, read_label_map
from weakseg.data.simulate import rasterise
from weakseg.errors import WeaksegError
from weakseg.labels import UNLABELLED, VOID, WeakLabels
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import alpha_for
from weakseg.ops.partial import (
    LabelMap,
    Size,
    activation_in_box,
    box_labels,
    most_precise,
    smallest_box,
    tag_labels,
)
from weakseg.ops.resize import resize_bilinear
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.inference import Threshold
from weakseg.pipeline.stage import Reads, Stage
from weakseg.pipeline.stages.maps import read_maps

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

Kind = Literal["points", "scribbles", "boxes", "tags"]
KINDS: tuple[Kind, ...] = ("points", "scribbles", "boxes", "tags")
"""From the most precise to the least."""


class Partial(Stage):
    """Where several kinds of labels say something of a pixel, the most precise one is believed: a point, then a
    scribble, then a box, then a tag. Boxes speak of every pixel of their image (what their maps leave open inside of
    them is unlabelled on purpose), so tags add nothing to them."""

    leaves: ClassVar[str] = "partial"
    version: ClassVar[int] = 2
    kind: Literal["partial"] = "partial"
    maps: Annotated[str | None, Reads("maps")] = Field(
        default=None, description="the stage that made activation maps, for tags and boxes; null: tags label nothing"
    )
    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1, description="the kinds of labels that are used")
    alpha: Annotated[float, Field(gt=0)] | Literal["adaptive"] = Field(
        default=6.0,
        description="tags: the background's score is (1 - largest activation) to this power; adaptive: the power with "
        "which it is as strong as the classes where each image's maps fall into two parts",
    )
    tag_threshold: Threshold = Field(default=0.2, description="tags: pixels whose best score is below are unlabelled")
    boxes: Literal["maps", "fill"] = Field(
        default="maps",
        description="maps: the class where its map, from 0 to 1 inside of the box, reaches box_threshold; fill: the "
        "whole box, the smaller of two that overlap, which needs no maps",
    )
    box_threshold: Threshold = Field(
        default=0.5, description="boxes: pixels inside whose score is below are unlabelled"
    )
    scribble_width: float = Field(default=3, ge=0, description="scribbles: width of the line, pixels")
    point_width: float = Field(default=6, ge=0, description="points: diameter of the spot, pixels")

    def dependencies(self, context: Context) -> list[str]:
        samples = context.weakly_labelled()
        return [stamps.images(samples), stamps.weak_labels(samples), stamps.tags(samples)]

    def prepare(self, context: Context) -> None:
        """Raise `WeaksegError` for too many classes, for boxes without maps, and where no image gets any label."""
        classes, samples = context.dataset.classes, context.weakly_labelled()
        if UNLABELLED in classes.labels:
            raise WeaksegError(
                f"The data set has {len(classes)} classes; partial label maps of 8 bits hold at most {UNLABELLED - 1}, "
                f"since {UNLABELLED} is unlabelled and {VOID} void in them. Leave out a class, or add one that no "
                "image shows: with more classes, maps have 16 bits."
            )
        boxed = [sample.name for sample in samples if sample.labels.boxes]
        if boxed and "boxes" in self.kinds and self.boxes == "maps" and self.maps is None:
            raise WeaksegError(
                f"{len(boxed)} images have boxes, the first is {boxed[0]}, and this rule for boxes reads activation "
                "maps, but the partial stage names none. Set its maps to a stage that makes them, boxes=fill to fill "
                "the boxes, or take boxes out of its kinds."
            )
        if not any(self._says_something(sample.labels) for sample in samples):
            without_maps = " Tags label pixels only through activation maps; set maps." if self.maps is None else ""
            raise WeaksegError(
                f"None of the {len(samples)} images has labels of the kinds {', '.join(self.kinds)} that label any "
                f"pixel.{without_maps}"
            )

    def run(self, context: Context, folder: Path) -> None:
        source = None if self.maps is None else context.folder(self.maps)

        def write(sample: Sample) -> None:
            maps, size = None if source is None else read_maps(source, sample), image_size(sample.image)
            if maps is not None and sample.long_side:
                # Boxes, points and scribbles are drawn at the size of the image's file.
                maps = replace(maps, maps=resize_bilinear(maps.upsampled(), size), size=size, stride=1)
            context.write_labels(partial_path(folder, sample), self.label_map(sample.labels, size, maps))

        complete("partial label maps", context.weakly_labelled(), partial(partial_path, folder), write)

    def label_map(self, labels: WeakLabels, size: Size, maps: ActivationMaps | None) -> LabelMap:
        """The partial label map (H, W) of an image of `size` (H, W)."""
        layer: dict[Kind, Callable[[], LabelMap]] = {
            "points": lambda: _drawn(WeakLabels(points=labels.points), size, self.point_width),
            "scribbles": lambda: _drawn(WeakLabels(scribbles=labels.scribbles), size, self.scribble_width),
            "boxes": lambda: self._boxes(labels, size, maps),
            "tags": lambda: self._tags(labels, size, maps),
        }
        return most_precise([layer[kind]() for kind in KINDS if kind in self._read_kinds(labels)], size)

    def _boxes(self, labels: WeakLabels, size: Size, maps: ActivationMaps | None) -> LabelMap:
        if self.boxes == "fill":
            return box_labels(labels.boxes, size, smallest_box, threshold=0)
        assert maps is not None
        return box_labels(labels.boxes, size, activation_in_box(maps), self.box_threshold)

    def _tags(self, labels: WeakLabels, size: Size, maps: ActivationMaps | None) -> LabelMap:
        tags = labels.tags or frozenset()
        if maps is None:
            return np.zeros(size, np.uint8)  # an image without any object
        alpha = alpha_for(maps, self.alpha)
        return tag_labels(maps, tags, alpha, self.tag_threshold)

    def _read_kinds(self, labels: WeakLabels) -> set[Kind]:
        """The kinds of labels that label pixels of this image."""
        found: set[Kind] = {kind for kind in ("points", "scribbles", "boxes") if getattr(labels, kind)}
        if labels.tags is not None and (self.maps is not None or not labels.present()):
            found.add("tags")
        if "boxes" in found and "boxes" in self.kinds:
            found.discard("tags")
        return found & set(self.kinds)

    def _says_something(self, labels: WeakLabels) -> bool:
        return bool(self._read_kinds(labels))

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        """The partial label map (H, W), uint8."""
        return read_label_map(partial_path(folder, sample))

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        if shown.weakly_labelled:
            labels = cls.array_of(run.root / name, shown.sample)
            yield shown.label_map(np.where(labels == UNLABELLED, np.uint8(VOID), labels), f"{name}: unlabelled as void")


def partial_path(folder: Path, sample: Sample) -> Path:
    """Where the partial label map of an image lies in the folder of its stage."""
    # Not where masks lie, since a run looks there for masks that somebody corrected.
    return folder / "partial" / f"{sample.name}.png"


def _drawn(labels: WeakLabels, size: Size, width: float) -> LabelMap:
    """Points and scribbles of a width (pixels) as a partial label map."""
    marks = rasterise(labels, size, radius=width / 2)
    return np.where(marks == VOID, np.uint8(UNLABELLED), marks)


STAGE = Partial
