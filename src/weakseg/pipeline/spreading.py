"""What the stages share that make masks of what a segmenter thinks similar: `spread` and `retrieve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.labels import label_array
from weakseg.ops.crf_parameters import known_or_none
from weakseg.pipeline.applying import Applying
from weakseg.pipeline.inference import LabelArray, decide
from weakseg.pipeline.stage import Reads
from weakseg.pipeline.stages.masks import mask_path

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup


class BySimilarity(Applying):
    """Base of the stages that make masks by a segmenter that can (`Spreading`, `Remembering` of `methods.base`)."""

    role: ClassVar[Literal["refiner", "segmenter"]] = "segmenter"
    leaves: ClassVar[str] = "masks"
    segmenter: Annotated[str, Reads("segmenter")] = Field(description="the stage that trained the segmenter")
    labels: Annotated[str, Reads("partial", "masks")] = Field(
        description="the stage of partial label maps or masks that say which classes an image shows, and where"
    )
    crf: Annotated[str | None, AfterValidator(known_or_none)] = Field(
        default="spml", description="the name of a set of CRF parameters; null: no CRF"
    )

    def mask_of(self, sample: Sample, scores: Tensor, device: torch.device) -> LabelArray:
        """The label map (H, W) of a sample, at the size of its file, from scores (1 + C, h, w) at the size that is
        worked on."""
        image, rows = sample.read_image(), label_array(range(len(scores)))
        return decide(image, scores.cpu().numpy(), rows, self.crf, device).of_file(sample, image).labels

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        return read_label_map(mask_path(folder, sample))

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        if shown.weakly_labelled:
            title = run.titles("masks").get(name, name)
            iou = run.image_iou(title, shown.part).get(shown.sample.name)
            yield shown.label_map(cls.array_of(run.root / name, shown.sample), title, iou)
