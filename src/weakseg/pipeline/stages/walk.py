"""Activation maps spread by a trained refiner. Artifact: one `.npz` per image, like that of the stage `maps`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.errors import WeaksegError
from weakseg.methods.base import Image, Refiner, Settings, absolute, find_method, version_of
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.instances import Instances
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.learning import trained
from weakseg.pipeline.stage import MODEL_FOLDER, Reads, Stage
from weakseg.pipeline.stages.maps import map_figures, map_path, read_maps
from weakseg.settings import changed, validate

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup


class ByRefiner(Stage):
    """Base of the stages that hand each image and its maps to a trained refiner, and keep what it returns.

    `method` is that of the stage `refiner`; `options` are what it can be told without training anew.
    """

    title: ClassVar[str]
    method: str = Field(description="the method of the refiner")
    refiner: Annotated[str, Reads("refiner")] = Field(description="the stage that trained the refiner")
    maps: Annotated[str, Reads("maps")] = Field(description="the stage whose maps are handed to it")
    options: dict[str, Any] = Field(
        default_factory=dict, description="what the refiner is told; nothing is trained anew"
    )

    def options_class(self) -> type[Settings]:
        """The options of this method."""
        raise NotImplementedError

    def result(
        self, network: Any, image: Image, maps: ActivationMaps, options: Any, device: torch.device
    ) -> ActivationMaps | Instances:
        """What the refiner makes of one image."""
        raise NotImplementedError

    @staticmethod
    def result_path(folder: Path, sample: Sample) -> Path:
        """Where the result of an image lies in the folder of the stage."""
        raise NotImplementedError

    def checked(self, where: str) -> Self:
        found = self.model_copy(update={"method": absolute(self.method)})
        options = validate(found.options_class(), self.options, f"{where}.options")
        return found.model_copy(update={"options": options.model_dump(mode="json")})

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings["method"] = Path(self.method).name
        settings["options"] = changed(self.options_class(), self.options)
        return settings

    def versions(self) -> list[Any]:
        return [*super().versions(), *version_of(find_method(Refiner, self.method))]

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled())]

    def prepare(self, context: Context) -> None:
        stage = trained(context, self.refiner)
        if stage.method != self.method:
            raise WeaksegError(
                f'A stage of the kind {self.kind} has the method {self.method}, but its refiner "{self.refiner}" '
                f"trains {stage.method}. Give both the same method."
            )

    def run(self, context: Context, folder: Path) -> None:
        device = context.fabric.device
        network: Any = load_model(context.folder(self.refiner) / MODEL_FOLDER).network.to(device)
        options = self.options_class().model_validate(self.options)
        path, source = partial(self.result_path, folder), context.folder(self.maps)

        def make(sample: Sample) -> None:
            image, maps = sample.read_image(), read_maps(source, sample)
            self.result(network, image, maps, options, device).save(path(sample))

        complete(self.title, context.weakly_labelled(), path, make, through=map)


class Walk(ByRefiner):
    """The maps themselves, spread."""

    leaves: ClassVar[str] = "maps"
    title: ClassVar[str] = "walk"
    kind: Literal["walk"] = "walk"

    def options_class(self) -> type[Settings]:
        return find_method(Refiner, self.method).Options

    def result(self, network: Any, *given: Any) -> ActivationMaps:
        walked: ActivationMaps = network.refine(*given)
        return walked

    result_path = staticmethod(map_path)

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        return map_figures(run, name, shown, "walked map")


STAGE = Walk
