"""Objects cut out of images by pseudo-masks, to be pasted elsewhere (CDA). Artifact: `crops/LABEL/NAME.png`,
transparent outside of the object, and `index.json` (see `methods.cda.Pool`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.methods import cda
from weakseg.ops.resize import resize_labels
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.stage import Reads, Stage
from weakseg.pipeline.stages.masks import mask_path
from weakseg.progress import Progress
from weakseg.threads import threaded

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

CROPS_PER_CLASS = 24
"""How many the report shows."""

Share = Annotated[float, Field(ge=0, le=1)]


class Pool(Stage):
    """Only training images give crops: those whose mask shows one class, on a share of the pixels in a range."""

    leaves: ClassVar[str] = "pool"
    kind: Literal["pool"] = "pool"
    masks: Annotated[str, Reads("masks")] = Field(description="the stage whose masks show where objects are")
    smallest: Share = Field(default=0.1, description="share of the image that the object covers at least")
    largest: Share = Field(default=0.7, description="share of the image that the object covers at most")

    @model_validator(mode="after")
    def _ascending(self) -> Pool:
        if self.smallest > self.largest:
            raise ValueError("smallest is larger than largest, so no object fits")
        return self

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.train)]

    def run(self, context: Context, folder: Path) -> None:
        source = context.folder(self.masks)
        mine = parallel.share(context.train)
        found: dict[str, int] = {}
        with Progress("pool", len(mine)) as progress:
            for sample, label in zip(mine, threaded(lambda s: self._cut(s, source, folder), mine), strict=True):
                if label is not None:
                    found[sample.name] = label
                progress.advance()
        labels = {name: label for part in parallel.gather(found) for name, label in part.items()}
        names: dict[int, list[str]] = {}
        for sample in context.train:
            if sample.name in labels:
                names.setdefault(labels[sample.name], []).append(sample.name)
        classes = context.dataset.classes
        empty = [name for label, name in classes.numbered() if label not in names]
        context.log("pool", crops=len(labels), classes_without=empty)
        if parallel.rank() == 0:
            cda.Pool.write_index(folder, classes, names)

    def _cut(self, sample: Sample, source: Path, folder: Path) -> int | None:
        """Write the crop of an image, if it has one and is not yet there; returns its class."""
        mask = read_label_map(mask_path(source, sample))
        label = cda.simple_label(mask, self.smallest, self.largest)
        if label is not None and not cda.Pool.path(folder, label, sample.name).exists():
            image = sample.read_image()
            if sample.long_side:
                mask = resize_labels(mask, sample.size())
            if image.shape[:2] != mask.shape:
                raise WeaksegError(
                    f"The mask of {sample.image} has {mask.shape[1]}×{mask.shape[0]} pixels, "
                    f"the image {image.shape[1]}×{image.shape[0]}."
                )
            cda.Pool.write(folder, sample.name, cda.cut_out(image, mask))
        return label

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        return {"Pool": _part(run, name)}


def _part(run: RunFolder, name: str) -> Iterator[Markup]:
    """The crops of every class."""
    from weakseg.report.markup import element

    classes = Classes(run.data["classes"])
    pool = cda.Pool.load(run.root / name, classes)
    yield element("h3", f"Crops ({name})")
    yield from _crops(pool, classes)


def _crops(pool: cda.Pool, classes: Classes) -> Iterator[Markup]:
    from weakseg.report import pictures
    from weakseg.report.figures import figure, strip
    from weakseg.report.markup import note

    if missing := [name for label, name in classes.numbered() if not pool.names[label - 1]]:
        yield note(f"Without crops, and so never pasted: {', '.join(missing)}.")
    figures = []
    for label in pool.labels:
        names = pool.names[label - 1]
        crops = [pool.read(label, name) for name in pictures.spread(names, CROPS_PER_CLASS)]
        sheet = pictures.contact_sheet([(crop.image, crop.inside) for crop in crops])
        caption = f"{classes.name(label)}: {len(crops)} of {len(names)} crops"
        figures.append(figure(sheet, caption, f"Crops of {caption}"))
    yield strip(figures, columns=3)


STAGE = Pool
