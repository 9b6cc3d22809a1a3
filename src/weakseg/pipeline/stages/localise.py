"""Train a classifier from tags that can show where it looks. Artifact: a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from weakseg import parallel
from weakseg.data.loading import TaggedImages
from weakseg.methods import cda
from weakseg.methods.base import Kind
from weakseg.methods.store import save_model
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Learning, Reads


class Paste(cda.Settings):
    """Objects of an earlier stage `pool` are pasted on half of the images of every batch (CDA)."""

    pool: Annotated[str, Reads("pool")]


class Localise(Learning):
    """The weak labels of the training split, and of no other, are learned from."""

    leaves: ClassVar[str] = "localiser"
    kind: Literal["localise"] = "localise"
    method_kind: ClassVar[Kind] = "LOCALISER"
    paste: Paste | None = Field(default=None, description="learn from pairs of an image and one with an object on it")

    def settings_of_artifact(self) -> dict[str, Any]:
        # What was learned without pasting, before there was any, is still what it would be.
        settings = super().settings_of_artifact()
        if self.paste is None:
            del settings["paste"]
        return settings

    def dependencies(self, context: Context) -> list[str]:
        samples = self.samples(context)
        return [*super().dependencies(context), stamps.images(samples), stamps.weak_labels(samples)]

    def run(self, context: Context, folder: Path) -> None:
        decay = cda.PARITY_DECAY if self.paste is not None and self.paste.parity else 1.0
        model = self.learn(context, folder, self._images(context), decay=decay)
        if parallel.rank() == 0:
            save_model(folder / MODEL_FOLDER, model)

    def _images(self, context: Context) -> TorchDataset[dict[str, Tensor]]:
        classes = context.dataset.classes
        images = TaggedImages(self.samples(context), len(classes), self.augment, context.seed)
        if self.paste is None:
            return images
        return cda.with_pasting(images, cda.Pool.load(context.folder(self.paste.pool), classes), self.paste, classes)


STAGE = Localise
