"""A segmenter's own label maps of the training images: what a later round can learn from. Artifact: one palette PNG per
image, as that of the stage `masks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy.typing as npt
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.data.loading import read_fields
from weakseg.methods.base import Item
from weakseg.methods.store import load_model, make_ready
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Batch, Context, complete_batches
from weakseg.pipeline.inference import Inference, Prediction, predict_batches
from weakseg.pipeline.learning import trained
from weakseg.pipeline.stage import MODEL_FOLDER, Reads, Stage
from weakseg.pipeline.stages.masks import mask_path

BATCH_SIZE = 8
"""Images of one size that go through a segmenter together."""


class Predict(Stage):
    """The images are those that pseudo-masks are made for."""

    leaves: ClassVar[str] = "masks"
    kind: Literal["predict"] = "predict"
    segmenter: Annotated[str, Reads("segmenter")] = Field(description="the stage that trained the segmenter")
    inference: Inference = Field(default=Inference(), description="how the segmenter is applied")

    def reads_weak_labels(self) -> bool:
        return False

    def dependencies(self, context: Context) -> list[str]:
        files = trained(context, self.segmenter).stamps_at_inference(context)
        return [stamps.images(context.weakly_labelled()), *files]

    def run(self, context: Context, folder: Path) -> None:
        path = partial(mask_path, folder)
        predict_samples(context, self.segmenter, self.inference, context.weakly_labelled(), path)

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        return read_label_map(mask_path(folder, sample))


def predict_samples(
    context: Context, segmenter: str, inference: Inference, samples: Sequence[Sample], path: Callable[[Sample], Path]
) -> None:
    """Write the label maps of all samples by the segmenter that a stage trained; `path` says where each lies."""
    device = context.fabric.device
    model = load_model(context.folder(segmenter) / MODEL_FOLDER)
    make_ready(model, device)
    fields, readers = trained(context, segmenter).at_inference(context)

    def read(sample: Sample) -> Item:
        return read_fields(sample, readers, fields)

    def write(sample: Sample, item: Item, prediction: Prediction) -> None:
        context.write_labels(path(sample), prediction.of_file(sample, item["image"]).labels)

    def through(batches: list[Batch]) -> Iterator[None]:
        return predict_batches(model, batches, read, write, inference, device)

    complete_batches("predicting", samples, BATCH_SIZE, path, through)


STAGE = Predict
