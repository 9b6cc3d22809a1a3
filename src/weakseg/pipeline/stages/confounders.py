"""Class-average masks of the training images (CONTA). Artifact: `confounders.npz` (see `methods.conta.Confounders`).

One pass over the masks, shared by the processes; a stage that was killed begins it anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy.typing as npt
from pydantic import Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import image_size, read_label_map
from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.methods import conta
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.stage import Reads, Stage
from weakseg.pipeline.stages.masks import mask_path
from weakseg.progress import Progress
from weakseg.threads import threaded

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

FILE_NAME = "confounders.npz"


class Confounders(Stage):
    """What a later round of a localiser is adjusted by."""

    leaves: ClassVar[str] = "confounders"
    kind: Literal["confounders"] = "confounders"
    masks: Annotated[str, Reads("masks")] = Field(
        description="whose masks are averaged: a segmenter's predictions (the paper's choice), or pseudo-masks"
    )
    grid: conta.Grid = Field(
        description="rows and columns of the averages, whatever the images' sizes; the paper's localisers have as many "
        "cells of features in a crop"
    )
    average: Literal["tagged", "predicted"] = Field(
        default="tagged", description="over the images that have the class as a tag, or whose mask shows it, too"
    )

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.train), stamps.weak_labels(context.train)]

    def run(self, context: Context, folder: Path) -> None:
        source, mine = context.folder(self.masks), parallel.share(context.train)
        sums = conta.ConfounderSums(context.dataset.classes.largest, self.grid)
        with Progress("confounders", len(mine)) as progress:
            for sample, mask in zip(mine, threaded(lambda s: read_mask(source, s), mine), strict=True):
                sums.add(mask, sample.labels.present())
                progress.advance()
        found = sums.over_ranks().confounders(self.average)
        absent = [name for label, name in context.dataset.classes.numbered() if not found.count[label - 1]]
        context.log("confounders", images=found.images, classes_without=absent)
        if parallel.rank() == 0:
            found.save(folder / FILE_NAME, context.dataset.classes)

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        return {"Rounds": _part(run, name)}


def read_mask(folder: Path, sample: Sample) -> npt.NDArray[Any]:
    """The label map that the stage of this folder made of an image; raises `WeaksegError` for one of another size."""
    mask = read_label_map(mask_path(folder, sample))
    height, width = image_size(sample.image)
    if mask.shape != (height, width):
        raise WeaksegError(
            f"The mask of {sample.image} ({mask_path(folder, sample)}) has {mask.shape[1]}×{mask.shape[0]} pixels, "
            f"the image {width}×{height}; their sizes must be equal."
        )
    return mask


@dataclass(frozen=True)
class ReadContext:
    """`context`: x (h, w) of a sample, of the mask that the stage of this folder made of it."""

    folder: Path
    grid: conta.Grid

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        mask = read_mask(self.folder, sample)
        return {"context": conta.foreground_share(mask, sample.labels.present(), self.grid)}


def _part(run: RunFolder, name: str) -> Iterator[Markup]:
    """The confounders as pictures."""
    from weakseg.report import pictures
    from weakseg.report.figures import figure, strip
    from weakseg.report.markup import element, note

    classes = Classes(run.data["classes"])
    found = conta.Confounders.load(run.root / name / FILE_NAME, classes)
    largest = float(found.confounder.max())
    yield element("h3", f"Confounders ({name})")
    if absent := [name for label, name in classes.numbered() if not found.count[label - 1]]:
        yield note(f"Without images, and so without a confounder: {', '.join(absent)}.")
    yield element(
        "p",
        f"The average mask of each class; black-violet is 0, yellow is {largest:.2f}, the largest value of all.",
        class_="explanation",
    )
    figures = []
    for label, name in classes.numbered():
        caption = f"{name}: {found.count[label - 1]} images"
        picture = pictures.heat(found.confounder[label - 1] / max(largest, 1e-12))
        figures.append(figure(picture, caption, f"Average mask of {caption}"))
    yield strip(figures, columns=4)


STAGE = Confounders
