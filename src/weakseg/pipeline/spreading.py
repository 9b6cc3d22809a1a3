"""What the stages share that make masks of what a segmenter thinks similar: `spread` and `retrieve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from weakseg.data.dataset import Sample
from weakseg.data.images import read_image, read_label_map
from weakseg.errors import WeaksegError
from weakseg.labels import label_array
from weakseg.methods.base import Segmenter, absolute, find_method, version_of
from weakseg.methods.store import load_model, make_ready
from weakseg.ops.crf_parameters import known_or_none
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.inference import LabelArray, decide
from weakseg.pipeline.learning import trained
from weakseg.pipeline.stage import MODEL_FOLDER, Reads, Stage
from weakseg.pipeline.stages.masks import mask_path
from weakseg.settings import changed, validate

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup


class BySimilarity(Stage):
    """Base of the stages that make masks by a segmenter that can (`Spreading`, `Remembering` of `methods.base`):
    one that has the options called `options_name`."""

    leaves: ClassVar[str] = "masks"
    options_name: ClassVar[str]
    method: str = Field(description="the method of the segmenter")
    segmenter: Annotated[str, Reads("segmenter")] = Field(description="the stage that trained the segmenter")
    labels: Annotated[str, Reads("partial", "masks")] = Field(
        description="the stage of partial label maps or masks that say which classes an image shows, and where"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="how it is done; nothing is trained anew")
    crf: Annotated[str | None, AfterValidator(known_or_none)] = Field(
        default="spml", description="the name of a set of CRF parameters; null: no CRF"
    )

    def checked(self, where: str) -> Self:
        found = self.model_copy(update={"method": absolute(self.method)})
        options_class = found.options_class()
        if options_class is None:
            raise WeaksegError(f"{where}.method: {self.method} cannot be used by a stage of the kind {self.kind}.")
        options = validate(options_class, self.options, f"{where}.options")
        return found.model_copy(update={"options": options.model_dump(mode="json")})

    def options_class(self) -> Any:
        """The options of this kind of stage that the method has, None if it has none."""
        return getattr(find_method(Segmenter, self.method), self.options_name, None)

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings["method"] = Path(self.method).name
        settings["options"] = changed(self.options_class(), self.options)
        return settings

    def versions(self) -> list[Any]:
        return [*super().versions(), *version_of(find_method(Segmenter, self.method))]

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled())]

    def prepare(self, context: Context) -> None:
        stage = trained(context, self.segmenter)
        if stage.method != self.method:
            raise WeaksegError(
                f'A stage of the kind {self.kind} has the method {self.method}, but its segmenter "{self.segmenter}" '
                f"trains {stage.method}. Give both the same method."
            )

    def network(self, context: Context) -> Any:
        """The trained network, on the device, in evaluation mode."""
        model = load_model(context.folder(self.segmenter) / MODEL_FOLDER)
        make_ready(model, context.fabric.device)
        return model.network

    def typed_options(self) -> Any:
        """The options as settings of the method."""
        return self.options_class().model_validate(self.options)

    def mask_of(self, sample: Sample, scores: Tensor, device: torch.device) -> LabelArray:
        """The label map (H, W) of a sample, at the size of its file, from scores (1 + C, h, w) at the size that is
        worked on."""
        image, rows = sample.read_image(), label_array(range(len(scores)))
        decided = decide(image, scores.cpu().numpy(), rows, self.crf, device)
        return (decided.enlarged(image, read_image(sample.image)) if sample.long_side else decided).labels

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        return read_label_map(mask_path(folder, sample))

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        if shown.weakly_labelled:
            title = run.titles("masks").get(name, name)
            iou = run.image_iou(title, shown.part).get(shown.sample.name)
            yield shown.label_map(cls.array_of(run.root / name, shown.sample), title, iou)
