"""Activation maps spread by a trained refiner. Artifact: one `.npz` per image, like that of the stage `maps`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.files import read_json
from weakseg.methods.base import Image
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import foreground_share, with_own_background
from weakseg.ops.instances import Instances
from weakseg.pipeline.applying import Applying
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.stage import THRESHOLD_NAME, Reads
from weakseg.pipeline.stages.maps import map_figures, map_path, read_maps

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup


class ByRefiner(Applying):
    """Base of the stages that hand each image and its maps to a trained refiner, and keep what it returns."""

    role: ClassVar[Literal["refiner", "segmenter"]] = "refiner"
    title: ClassVar[str]
    refiner: Annotated[str, Reads("refiner")] = Field(description="the stage that trained the refiner")
    maps: Annotated[str, Reads("maps")] = Field(description="the stage whose maps are handed to it")

    def result(
        self, network: Any, image: Image, maps: ActivationMaps, options: Any, device: torch.device
    ) -> ActivationMaps | Instances:
        """What the refiner makes of one image."""
        raise NotImplementedError

    @staticmethod
    def result_path(folder: Path, sample: Sample) -> Path:
        """Where the result of an image lies in the folder of the stage."""
        raise NotImplementedError

    def maps_of(self, context: Context) -> Callable[[Sample], ActivationMaps]:
        """A function from a sample to the maps that are handed to the refiner."""
        return partial(read_maps, context.folder(self.maps))

    def run(self, context: Context, folder: Path) -> None:
        network, options, device = self.network(context), self.typed_options(), context.fabric.device
        path, maps_of = partial(self.result_path, folder), self.maps_of(context)

        def make(sample: Sample) -> None:
            self.result(network, sample.read_image(), maps_of(sample), options, device).save(path(sample))

        complete(self.title, context.weakly_labelled(), path, make, through=map)


class Walk(ByRefiner):
    """The maps themselves, spread."""

    leaves: ClassVar[str] = "maps"
    title: ClassVar[str] = "walk"
    version: ClassVar[int] = 4
    kind: Literal["walk"] = "walk"
    options_name: ClassVar[str] = "Options"
    masks: Annotated[str | None, Reads("masks")] = Field(
        default=None,
        description="the stage of masks of these maps: a threshold that was given there, or chosen on true masks, says "
        "how strong a background suits an image; null, or adaptive there: the maps of the image say it",
    )
    most_growth: float | None = Field(
        default=None,
        ge=1,
        description="how many times as large the foreground of an image may get; an image where it gets larger keeps "
        "its maps, with a background as strong as suits them. For refined maps that have a background; null: any size",
    )

    def maps_of(self, context: Context) -> Callable[[Sample], ActivationMaps]:
        read = super().maps_of(context)
        if self.masks is None:
            return read
        path = context.folder(self.masks) / THRESHOLD_NAME
        chosen = read_json(path)["threshold"] if path.is_file() else None  # a method's own rule leaves no file
        return (lambda sample: replace(read(sample), threshold=chosen)) if isinstance(chosen, float) else read

    def result(
        self, network: Any, image: Image, maps: ActivationMaps, options: Any, device: torch.device
    ) -> ActivationMaps:
        walked: ActivationMaps = network.refine(image, maps, options, device)
        if self.most_growth is None or not walked.has_background:
            return walked
        still = with_own_background(maps)
        flooded = foreground_share(walked) > self.most_growth * foreground_share(still)
        return still if flooded else walked

    result_path = staticmethod(map_path)

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        return map_figures(run, name, shown, "walked map")


STAGE = Walk
