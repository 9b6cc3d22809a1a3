"""Train a localiser from pairs of an image and one with an object pasted on it (CDA). Artifact: a model folder."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weakseg.data.loading import TrainingImages
from weakseg.methods import cda
from weakseg.methods.base import Localiser, Method
from weakseg.pipeline.context import Context
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.stage import Reads
from weakseg.training import TrainingSet


class Paste(Learning):
    """What the stage `localise` does, with objects of an earlier stage `pool` on half of the images of every batch."""

    leaves: ClassVar[str] = "localiser"
    kind: Literal["paste"] = "paste"
    method_kind: ClassVar[type[Method]] = Localiser
    pool: Annotated[str, Reads("pool")] = Field(description="the stage that cut out the objects")
    paste: cda.Settings = Field(default=cda.Settings(), description="how objects are pasted")

    def wrapped(self, images: TrainingImages, context: Context) -> TrainingSet:
        classes = context.dataset.classes
        return cda.with_pasting(images, cda.Pool.load(context.folder(self.pool), classes), self.paste, classes)


STAGE = Paste
