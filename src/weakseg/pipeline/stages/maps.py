"""Activation maps of the classes that are present. Artifact: one `.npz` per image (see `ops.activation`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from weakseg.data.dataset import Sample
from weakseg.data.loading import read_fields
from weakseg.data.transforms import Factor
from weakseg.methods.base import Localiser, Settings
from weakseg.methods.store import load_model, make_ready
from weakseg.ops.activation import (
    ActivationMaps,
    Size,
    Views,
    divide_by_maximum,
    multi_scale_maps,
    normalise_maps,
    resize_maps,
    resize_through_view,
    stretch_maps,
)
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Batch, Context, complete_batches
from weakseg.pipeline.learning import trained
from weakseg.pipeline.stage import MODEL_FOLDER, Reads, Stage
from weakseg.settings import changed, validate
from weakseg.threads import pipelined

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

STYLES = {
    "irnet": (resize_maps, divide_by_maximum),
    "seam": (resize_through_view, stretch_maps),
    "raw": (resize_maps, None),
}
"""How maps are resized, and how they are normalised (None: not at all)."""


class Maps(Stage):
    """Multi-scale and mirrored inference; which classes are present is read from the weak labels.

    In the style `irnet` maps are resized once and divided by their maximum; in the style `seam` they are brought to the
    size of the network's input first, and reach from 0 at their minimum to 1 at their maximum; in the style `raw` they
    are sums of scores of any sign, for a rule that makes masks from such.
    """

    leaves: ClassVar[str] = "maps"
    kind: Literal["maps"] = "maps"
    localiser: Annotated[str, Reads("localiser")] = Field(description="the stage that trained the localiser")
    scales: tuple[Factor, ...] = Field(
        default=(1.0, 0.5, 1.5, 2.0), min_length=1, description="sizes of the image, 1 is its own"
    )
    stride: int = Field(default=4, gt=0, description="pixels of the image per cell of the saved maps")
    style: Literal["irnet", "seam", "raw"] = Field(
        default="irnet", description="how maps are resized and normalised; raw: not normalised, of any sign"
    )
    mirror: bool = Field(default=True, description="use the mirror image, too")
    options: dict[str, Any] = Field(
        default_factory=dict, description="what the localiser is told for these maps, besides the options of its stage"
    )
    batch_size: int = Field(default=8, gt=0, description="images of one size that go through the network together")

    def dependencies(self, context: Context) -> list[str]:
        samples = context.weakly_labelled()
        folders = trained(context, self.localiser).stamps_at_inference(context)
        told = changed(self._options_class(context), self._options(context).model_dump())
        return [stamps.images(samples), stamps.weak_labels(samples), json.dumps(told, sort_keys=True), *folders]

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings.pop("options", None)  # they are among the dependencies, with those of the localiser's stage
        return settings

    def _options_class(self, context: Context) -> type[Settings]:
        return trained(context, self.localiser).method_class().Options

    def _options(self, context: Context) -> Settings:
        """What the localiser is told."""
        told = {**trained(context, self.localiser).options, **self.options}
        return validate(self._options_class(context), told, f"{self.kind}.options")

    def run(self, context: Context, folder: Path) -> None:
        resize, normalise = STYLES[self.style]
        device = context.fabric.device
        model = load_model(context.folder(self.localiser) / MODEL_FOLDER)
        network = model.network
        assert isinstance(network, Localiser)
        network.options = self._options(context)
        make_ready(model, device)
        fields, readers = trained(context, self.localiser).at_inference(context)

        def read(batch: Batch) -> tuple[Batch, Views]:
            items = [read_fields(sample, readers, fields) for sample in batch]
            return batch, Views.of([item["image"] for item in items], self.scales, device, fields, items)

        def compute(inputs: tuple[Batch, Views]) -> Iterator[tuple[Sample, list[int], Size, Tensor]]:
            batch, views = inputs
            labels = [sorted(sample.labels.present()) for sample in batch]
            maps = multi_scale_maps(
                network.activation_maps, views, labels, device, self.stride, resize, mirror=self.mirror
            )
            for sample, present, of_present in zip(batch, labels, maps, strict=True):
                yield sample, present, views.size, of_present

        def write(result: tuple[Sample, list[int], Size, Tensor]) -> None:
            sample, present, size, maps = result
            # The thread waits for the device here, not the one that keeps it busy.
            normalised = normalise_maps(maps.cpu().numpy(), present, size, self.stride, normalise)
            normalised.save(map_path(folder, sample))

        complete_batches(
            "activation maps",
            context.weakly_labelled(),
            self.batch_size,
            partial(map_path, folder),
            partial(pipelined, read, compute, write),
        )

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        """The maps (K, H, W), float32, of the classes present, at the size of the image."""
        return read_maps(folder, sample).upsampled()

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        return map_figures(run, name, shown, "activation map")


def map_path(folder: Path, sample: Sample) -> Path:
    """Where the activation maps of an image lie in the folder of their stage."""
    return folder / "maps" / f"{sample.name}.npz"


def read_maps(folder: Path, sample: Sample) -> ActivationMaps:
    """The activation maps of an image that the stage of this folder made."""
    return ActivationMaps.load(map_path(folder, sample))


def map_figures(run: RunFolder, name: str, shown: Shown, what: str) -> Iterator[Markup]:
    """Heat maps for the report of a run; stages of one kind are told apart by the titles of their threshold curves."""
    if not shown.weakly_labelled:
        return
    if len(run.of_kind(run.stages[name]["kind"])) > 1:
        curves = {run.stages[masks]["maps"]: title for masks, title in run.titles("curves").items()}
        what += f" ({curves.get(name, name)})"
    yield from shown.heat_maps(read_maps(run.root / name, shown.sample).unsigned(), what)


STAGE = Maps
