"""What the stages share that make masks of what a segmenter thinks similar: `spread` and `retrieve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy.typing as npt
from pydantic import Field, field_validator

from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.errors import WeaksegError
from weakseg.methods.base import Segmenter, Settings, absolute, find_method, version_of
from weakseg.methods.store import load_model, make_ready
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.inference import known_crf
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.stage import MODEL_FOLDER, Reads, Stage
from weakseg.pipeline.stages.masks import mask_path
from weakseg.settings import changed, validate

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup


class BySimilarity(Stage):
    """Base of the stages that make masks by a segmenter that is `able` to (a protocol of `methods.base`)."""

    leaves: ClassVar[str] = "masks"
    able: ClassVar[Any]
    method: str = Field(description="the method of the segmenter")
    segmenter: Annotated[str, Reads("segmenter")] = Field(description="the stage that trained the segmenter")
    labels: Annotated[str, Reads("partial", "masks")] = Field(
        description="the stage of partial label maps or masks that say which classes an image shows, and where"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="how it is done; nothing is trained anew")
    crf: str | None = Field(default="spml", description="the name of a set of CRF parameters; null: no CRF")

    @field_validator("crf")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return known_crf(name)

    @staticmethod
    def options_class(method: Any) -> type[Settings]:
        """The options of this kind of stage that a method has."""
        raise NotImplementedError

    def checked(self, where: str) -> Self:
        method = find_method(Segmenter, absolute(self.method))
        if not all(hasattr(method, name) for name in self.able.__protocol_attrs__):
            raise WeaksegError(f"{where}.method: {self.method} cannot be used by a stage of the kind {self.kind}.")
        options = validate(self.options_class(method), self.options, f"{where}.options")
        return self.model_copy(
            update={"method": absolute(self.method), "options": options.model_dump(mode="json", exclude_defaults=True)}
        )

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings["method"] = Path(self.method).name
        settings["options"] = changed(self.options_class(find_method(Segmenter, self.method)), self.options)
        return settings

    def versions(self) -> list[Any]:
        return [*super().versions(), *version_of(find_method(Segmenter, self.method))]

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled())]

    def prepare(self, context: Context) -> None:
        stage = context.stages[self.segmenter]
        assert isinstance(stage, Learning)
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

    def options_of(self, context: Context) -> Any:
        """The options, typed."""
        return self.options_class(find_method(Segmenter, self.method)).model_validate(self.options)

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        return read_label_map(mask_path(folder, sample))

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        if shown.weakly_labelled:
            title = run.titles("masks").get(name, name)
            iou = run.image_iou(title, shown.part).get(shown.sample.name)
            yield shown.label_map(cls.array_of(run.root / name, shown.sample), title, iou)
