"""Train a localiser from pairs of an image and one with an object pasted on it (CDA). Artifact: a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from weakseg.data.loading import Draw, ReadTags, TrainingImages, generator
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.methods import cda
from weakseg.methods.base import Localiser, Method
from weakseg.ops.fields import TAGS
from weakseg.pipeline.context import Context
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.stage import Reads
from weakseg.training import TrainingSet

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

SHOWN, SHOWN_PER_ROW = 12, 4


class Paste(Learning):
    """What the stage `localise` does, with objects of an earlier stage `pool` on half of the images of every batch."""

    leaves: ClassVar[str] = "localiser"
    kind: Literal["paste"] = "paste"
    method_kind: ClassVar[type[Method]] = Localiser
    images_per_draw: ClassVar[int] = cda.PastedPairs.images_per_draw
    pool: Annotated[str, Reads("pool")] = Field(description="the stage that cut out the objects")
    paste: cda.Settings = Field(default=cda.Settings(), description="how objects are pasted")

    def wrapped(self, images: TrainingImages, context: Context) -> TrainingSet:
        classes = context.dataset.classes
        return cda.with_pasting(images, cda.Pool.load(context.folder(self.pool), classes), self.paste, classes)

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        return {**super().report_parts(run, name), "Pool": _part(run, name)}


def _part(run: RunFolder, name: str) -> Iterator[Markup]:
    """Some images of the first epoch with what was pasted on them."""
    from weakseg.report import pictures
    from weakseg.report.figures import figure, strip
    from weakseg.report.markup import element, note

    try:
        classes, parts = run.open_data()
    except WeaksegError as error:
        yield note(f"The pasted images are left out, since the data cannot be read any more: {error}")
        return
    stage, samples = run.stages[name], list(parts["train"].values())
    settings = cda.Settings.model_validate(stage["paste"])
    pool = cda.Pool.load(run.root / stage["pool"], classes)
    if not pool.labels:
        return
    yield element("h3", f"Pasted on images ({name})")
    if few := [classes.name(label) for label in pool.labels_below(settings.fewest_crops)]:
        yield note(f"Fewer than {settings.fewest_crops} crops, and so never pasted: {', '.join(few)}.")
    yield element("p", "What the classifier was trained on, before size and place vary.", class_="explanation")
    augmentation, seed = Augmentation.model_validate(stage["augment"]), run.recipe["seed"]
    images = TrainingImages(samples, [ReadTags(classes.largest)], {"tags": TAGS}, augmentation, seed)
    pairs = cda.PastedPairs(images, pool.with_at_least(settings.fewest_crops), settings)
    figures = []
    for place in pictures.spread(range(len(images)), SHOWN):
        draw = Draw(0, place, place)
        item = images.read(draw)
        pasted = pairs.pasted(item, generator(seed, draw, cda.PASTING_STREAM))
        added, old = (
            ", ".join(classes.name(k + 1) for k in np.flatnonzero(present).tolist())
            for present in (pasted["tags"] - item["tags"], item["tags"])
        )
        caption = f"{added or 'nothing'} on {old or 'no class'}"
        figures.append(figure(pictures.photo(pasted["image"]), caption, f"{caption}, {samples[place].name}"))
    yield strip(figures, columns=SHOWN_PER_ROW)


STAGE = Paste
