"""What the stages share that apply a network which an earlier stage trained: `walk`, `instances`, `spread`,
`retrieve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from weakseg.errors import WeaksegError
from weakseg.methods.base import Method, Refiner, Segmenter, Settings, absolute, find_method, methods, version_of
from weakseg.methods.store import load_model, make_ready
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.learning import trained
from weakseg.pipeline.stage import MODEL_FOLDER, Stage
from weakseg.settings import changed, validate


class Applying(Stage):
    """Base of the stages that hand each weakly labelled image to a trained network, and say by `options` what it does.

    `role` is the kind of the network, and the field that names the stage which trained it. `options_name` is how its
    method calls the options; a method without them cannot be used.
    """

    role: ClassVar[Literal["refiner", "segmenter"]]
    options_name: ClassVar[str]
    method: str = Field(description="the method of the network that is applied")
    options: dict[str, Any] = Field(
        default_factory=dict, description="what the network is told; nothing is trained anew"
    )

    def options_class(self) -> type[Settings]:
        """The options that the method has for this kind of stage."""
        options: type[Settings] = getattr(self._found(), self.options_name)
        return options

    def checked(self, where: str) -> Self:
        found = self.model_copy(update={"method": absolute(self.method)})
        if not hasattr(found._found(), self.options_name):
            able = [name for name, method in methods(self._kind()).items() if hasattr(method, self.options_name)]
            raise WeaksegError(
                f"{where}.method: a stage of the kind {self.kind} cannot use the {self.role} {self.method}. It can use "
                f"{', '.join(able)}."
            )
        options = validate(found.options_class(), self.options, f"{where}.options")
        return found.model_copy(update={"options": options.model_dump(mode="json")})

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings["method"] = Path(self.method).name
        settings["options"] = changed(self.options_class(), self.options)
        return settings

    def versions(self) -> list[Any]:
        return [*super().versions(), *version_of(self._found())]

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled())]

    def prepare(self, context: Context) -> None:
        source = getattr(self, self.role)
        stage = trained(context, source)
        if stage.method != self.method:
            raise WeaksegError(
                f'A stage of the kind {self.kind} has the method {self.method}, but its {self.role} "{source}" trains '
                f"{stage.method}. Give both the same method."
            )

    def network(self, context: Context) -> Any:
        """The trained network, on the device, in evaluation mode."""
        model = load_model(context.folder(getattr(self, self.role)) / MODEL_FOLDER)
        make_ready(model, context.fabric.device)
        return model.network

    def typed_options(self) -> Any:
        """The options as settings of the method."""
        return self.options_class().model_validate(self.options)

    def _found(self) -> type[Method]:
        return find_method(self._kind(), self.method)

    def _kind(self) -> type[Refiner] | type[Segmenter]:
        return Refiner if self.role == "refiner" else Segmenter
