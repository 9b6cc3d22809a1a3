"""Activation maps spread by a trained refiner. Artifact: one `.npz` per image, like that of the stage `maps`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.errors import WeaksegError
from weakseg.methods.base import find_method
from weakseg.methods.store import load_model
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Learning, Reads, Stage, complete
from weakseg.pipeline.stages.maps import map_path, read_maps
from weakseg.settings import validate


class Walk(Stage):
    """`method` is that of the stage `refiner`; `options` are what it can be told without training anew."""

    leaves: ClassVar[str] = "maps"
    kind: Literal["walk"] = "walk"
    method: str
    refiner: Annotated[str, Reads("refiner")]
    maps: Annotated[str, Reads("maps")]
    options: dict[str, Any] = Field(default_factory=dict)

    def checked(self, where: str) -> Self:
        options = validate(find_method("REFINER", self.method).Options, self.options, f"{where}.options")
        return self.model_copy(update={"options": options.model_dump(mode="json")})

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled())]

    def prepare(self, context: Context) -> None:
        require_method(context, self.refiner, self.method, "walk")

    def run(self, context: Context, folder: Path) -> None:
        network = load_model(context.folder(self.refiner) / MODEL_FOLDER).network.to(context.fabric.device)
        options = network.Options.model_validate(self.options)
        source = context.folder(self.maps)

        def walk(sample: Sample) -> None:
            maps = read_maps(source, sample)
            refined = network.refine(read_image(sample.image), maps, options, context.fabric.device)
            refined.save(map_path(folder, sample))

        complete("walk", context.weakly_labelled(), partial(map_path, folder), walk, through=map)


def require_method(context: Context, refiner: str, method: str, what: str) -> None:
    """Raise `WeaksegError` unless the stage `refiner` trains a network of this method."""
    stage = context.stages[refiner]
    assert isinstance(stage, Learning)
    if stage.method != method:
        raise WeaksegError(
            f'The {what} is one of {method}, but the stage "{refiner}" trains {stage.method}. '
            "Give both the same method."
        )


STAGE = Walk
