"""Train a segmenter on pseudo-masks as if they were ground truth. Artifact: a model folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.data.loading import MaskedImages
from weakseg.errors import WeaksegError
from weakseg.methods.base import Kind
from weakseg.methods.store import save_model, set_inference
from weakseg.pipeline import stamps
from weakseg.pipeline.inference import Inference
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Learning, Reads
from weakseg.pipeline.stages.masks import mask_path


class Segment(Learning):
    """`masks` is a stage of pseudo-masks, or null for the ground truth of the training split (full supervision).

    `inference` is how the trained segmenter is evaluated and, unless told otherwise, used to predict.
    """

    leaves: ClassVar[str] = "segmenter"
    kind: Literal["segment"] = "segment"
    method_kind: ClassVar[Kind] = "SEGMENTER"
    masks: Annotated[str | None, Reads("masks")]
    inference: Inference = Inference()

    def settings_of_artifact(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"inference"})

    def dependencies(self, context: Context) -> list[str]:
        samples = self.samples(context)
        truth = [stamps.ground_truth(samples)] if self.masks is None else []
        return [*super().dependencies(context), stamps.images(samples), *truth]

    def run(self, context: Context, folder: Path) -> None:
        read = ground_truth if self.masks is None else partial(pseudo_mask, context.folder(self.masks))
        images = MaskedImages(self.samples(context), read, self.augment, context.seed)
        model = self.learn(context, folder, images)
        if parallel.rank() == 0:
            save_model(folder / MODEL_FOLDER, model)

    def describe(self, folder: Path) -> None:
        set_inference(folder / MODEL_FOLDER, self.inference.model_dump(mode="json"))


# Not inside of `run`: worker processes that are not forked can only be told what a module holds.
def pseudo_mask(folder: Path, sample: Sample) -> npt.NDArray[np.uint8]:
    """The label map that the stage of this folder made for an image."""
    return read_label_map(mask_path(folder, sample))


def ground_truth(sample: Sample) -> npt.NDArray[np.uint8]:
    """The label map of an image; raises `WeaksegError` where it has none."""
    if sample.mask is None:
        raise WeaksegError(f"{sample.name} has no ground truth to train on; set masks to a stage instead.")
    return sample.mask.read()


STAGE = Segment
