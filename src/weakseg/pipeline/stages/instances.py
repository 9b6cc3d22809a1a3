"""Masks of single instances by a trained refiner that tells them apart. Artifact: `instances/NAME.npz` for each image
(see `ops.instances`) and, where the score split has instances to measure against, `average_precision.json`."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.errors import WeaksegError
from weakseg.files import write_json
from weakseg.methods.base import Refiner, Settings, find_method
from weakseg.ops.average_precision import AveragePrecision
from weakseg.ops.instances import Instances
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.stages.walk import ByRefiner

SCORES_NAME = "average_precision.json"


def instances_path(folder: Path, sample: Sample) -> Path:
    """Where the instances of an image lie in the folder of their stage."""
    return folder / "instances" / f"{sample.name}.npz"


class InstanceMasks(ByRefiner):
    """The instances of each image, and how good they are where the truth is known."""

    leaves: ClassVar[str] = "instances"
    title: ClassVar[str] = "instances"
    kind: Literal["instances"] = "instances"

    def checked(self, where: str) -> Self:
        if not hasattr(find_method(Refiner, self.method), "InstanceOptions"):
            raise WeaksegError(f"{where}.method: the refiner {self.method} does not tell instances apart.")
        return super().checked(where)

    def options_class(self) -> type[Settings]:
        options: type[Settings] = find_method(Refiner, self.method).InstanceOptions  # type: ignore[attr-defined]
        return options

    def result(self, network: Any, *given: Any) -> Instances:
        separated: Instances = network.instances(*given)
        return separated

    result_path = staticmethod(instances_path)

    def dependencies(self, context: Context) -> list[str]:
        return [*super().dependencies(context), stamps.instances(context.score)]

    def run(self, context: Context, folder: Path) -> None:
        super().run(context, folder)
        scores = measure(context, folder)
        if scores.images and parallel.rank() == 0:
            classes = ["background", *context.dataset.classes.names]
            write_json(folder / SCORES_NAME, {"classes": classes, **scores.to_dict()})


def measure(context: Context, folder: Path) -> AveragePrecision:
    """The average precision on the images of the score split whose instances are known, of all processes."""
    scores = AveragePrecision(len(context.dataset.classes) + 1)
    for sample in parallel.share([sample for sample in context.score if sample.objects is not None]):
        truth = sample.instances()
        if truth is not None:
            scores.update(truth, Instances.load(instances_path(folder, sample)), sample.name)
    return reduce(AveragePrecision.__add__, parallel.gather(scores))


STAGE = InstanceMasks
