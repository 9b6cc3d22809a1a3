"""Train a classifier from tags that can show where it looks. Artifact: a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from weakseg import parallel
from weakseg.data.loading import TaggedImages
from weakseg.methods.base import Kind
from weakseg.methods.store import save_model
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Learning


class Localise(Learning):
    """The weak labels of the training split, and of no other, are learned from."""

    leaves: ClassVar[str] = "localiser"
    kind: Literal["localise"] = "localise"
    method_kind: ClassVar[Kind] = "LOCALISER"

    def dependencies(self, context: Context) -> list[str]:
        samples = self.samples(context)
        return [*super().dependencies(context), stamps.images(samples), stamps.weak_labels(samples)]

    def run(self, context: Context, folder: Path) -> None:
        num_classes = len(context.dataset.classes)
        images = TaggedImages(self.samples(context), num_classes, self.augment, context.seed)
        model = self.learn(context, folder, images)
        if parallel.rank() == 0:
            save_model(folder / MODEL_FOLDER, model)


STAGE = Localise
