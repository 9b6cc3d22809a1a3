"""Objects cut out of images by pseudo-masks, to be pasted elsewhere (CDA). Artifact: `crops/LABEL/NAME.png`,
transparent outside of the object, and `index.json` (see `methods.cda.Pool`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image, read_label_map
from weakseg.data.loading import Draw, TaggedImages, generator
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.methods import cda
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import Context, Reads, Stage
from weakseg.pipeline.stages.masks import mask_path
from weakseg.progress import Progress

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

CROPS_PER_CLASS = 24
PASTED_IMAGES, PASTED_PER_ROW = 12, 4
"""How much the report shows."""

Share = Annotated[float, Field(ge=0, le=1)]


class Pool(Stage):
    """Only training images give crops: those whose mask shows one class, on a share of the pixels in a range."""

    leaves: ClassVar[str] = "pool"
    kind: Literal["pool"] = "pool"
    masks: Annotated[str, Reads("masks")]
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
            for sample, label in zip(
                mine, parallel.threaded(lambda s: self._cut(s, source, folder), mine), strict=True
            ):
                if label is not None:
                    found[sample.name] = label
                progress.advance()
        labels = {name: label for part in parallel.gather(found) for name, label in part.items()}
        names: dict[int, list[str]] = {}
        for sample in context.train:
            if sample.name in labels:
                names.setdefault(labels[sample.name], []).append(sample.name)
        classes = context.dataset.classes
        empty = [name for label, name in enumerate(classes.names, start=1) if label not in names]
        context.log("pool", crops=len(labels), classes_without=empty)
        if parallel.rank() == 0:
            cda.Pool.write_index(folder, classes, names)

    def _cut(self, sample: Sample, source: Path, folder: Path) -> int | None:
        """Write the crop of an image, if it has one and is not yet there; returns its class."""
        mask = read_label_map(mask_path(source, sample))
        label = cda.simple_label(mask, self.smallest, self.largest)
        if label is not None and not cda.Pool.path(folder, label, sample.name).exists():
            image = read_image(sample.image)
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
    """The crops, and images with objects pasted on, as the classifiers that read the pool were trained on them."""
    from weakseg.report.markup import element, note

    try:
        classes, samples = run.open_data()
    except WeaksegError as error:
        yield note(f"The pool is left out, since the data cannot be read any more: {error}")
        return
    pool = cda.Pool.load(run.root / name, classes)
    yield element("h3", f"Crops ({name})")
    yield from _crops(pool, classes)
    for learning, stage in run.of_kind("localise").items():
        if (stage.get("paste") or {}).get("pool") == name and pool.labels:
            yield element("h3", f"Pasted on images ({learning})")
            yield from _pasted(pool, stage, run.recipe["seed"], list(samples["train"].values()), classes)


def _crops(pool: cda.Pool, classes: Classes) -> Iterator[Markup]:
    from weakseg.report import pictures
    from weakseg.report.figures import figure, strip
    from weakseg.report.markup import note

    if missing := [classes.name(k) for k, names in enumerate(pool.names, start=1) if not names]:
        yield note(f"Without crops, and so never pasted: {', '.join(missing)}.")
    figures = []
    for label in pool.labels:
        names = pool.names[label - 1]
        crops = [pool.read(label, name) for name in pictures.spread(names, CROPS_PER_CLASS)]
        sheet = pictures.contact_sheet([(crop.image, crop.inside) for crop in crops])
        caption = f"{classes.name(label)}: {len(crops)} of {len(names)} crops"
        figures.append(figure(sheet, caption, f"Crops of {caption}"))
    yield strip(figures, columns=3)


def _pasted(
    pool: cda.Pool, stage: Mapping[str, Any], seed: int, samples: Sequence[Sample], classes: Classes
) -> Iterator[Markup]:
    """Some images of the first epoch of a stage with what was pasted on them."""
    from weakseg.report import pictures
    from weakseg.report.figures import figure, strip
    from weakseg.report.markup import element, note

    settings = cda.Settings.model_validate({key: value for key, value in stage["paste"].items() if key != "pool"})
    if few := [classes.name(label) for label in pool.labels_below(settings.fewest_crops)]:
        yield note(f"Fewer than {settings.fewest_crops} crops, and so never pasted: {', '.join(few)}.")
    yield element("p", "What the classifier was trained on, before size and place vary.", class_="explanation")
    images = TaggedImages(samples, len(classes), Augmentation.model_validate(stage["augment"]), seed)
    pairs = cda.PastedPairs(images, pool.with_at_least(settings.fewest_crops), settings)
    figures = []
    for place in pictures.spread(range(len(images)), PASTED_IMAGES):
        draw = Draw(0, place, place)
        image, tags = images.read(draw)
        pasted, union = pairs.pasted(image, tags, generator(seed, draw, cda.PASTING_STREAM))
        added, old = (
            ", ".join(classes.name(k + 1) for k in present.nonzero().flatten().tolist())
            for present in (union - tags, tags)
        )
        caption = f"{added or 'nothing'} on {old or 'no class'}"
        figures.append(figure(pictures.photo(pasted), caption, f"{caption}, {samples[place].name}"))
    yield strip(figures, columns=PASTED_PER_ROW)


STAGE = Pool
