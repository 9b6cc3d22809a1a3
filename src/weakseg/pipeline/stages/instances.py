"""Masks of single instances by a trained refiner that tells them apart. Artifact: `instances/NAME.npz` for each image
(see `ops.instances`) and, where the score split has instances to measure against, `average_precision.json`."""

from __future__ import annotations

from functools import partial, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.errors import WeaksegError
from weakseg.files import write_json
from weakseg.methods.base import find_method
from weakseg.methods.store import load_model
from weakseg.ops.average_precision import AveragePrecision
from weakseg.ops.instances import Instances
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Reads, Stage, complete
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.walk import require_method
from weakseg.settings import validate

SCORES_NAME = "average_precision.json"


class InstanceMasks(Stage):
    """`method` is that of the stage `refiner`; `options` are what it can be told without training anew."""

    leaves: ClassVar[str] = "instances"
    kind: Literal["instances"] = "instances"
    method: str
    refiner: Annotated[str, Reads("refiner")]
    maps: Annotated[str, Reads("maps")]
    options: dict[str, Any] = Field(default_factory=dict)

    def checked(self, where: str) -> Self:
        method = find_method("REFINER", self.method)
        if not hasattr(method, "InstanceOptions"):
            raise WeaksegError(f"{where}.method: the refiner {self.method} does not tell instances apart.")
        options = validate(method.InstanceOptions, self.options, f"{where}.options")
        return self.model_copy(update={"options": options.model_dump(mode="json")})

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled()), stamps.instances(context.score)]

    def prepare(self, context: Context) -> None:
        require_method(context, self.refiner, self.method, "separation of instances")

    def run(self, context: Context, folder: Path) -> None:
        device = context.fabric.device
        network = load_model(context.folder(self.refiner) / MODEL_FOLDER).network.to(device)
        options = network.InstanceOptions.model_validate(self.options)
        source = context.folder(self.maps)

        def separate(sample: Sample) -> None:
            maps = read_maps(source, sample)
            network.instances(read_image(sample.image), maps, options, device).save(instances_path(folder, sample))

        complete("instances", context.weakly_labelled(), partial(instances_path, folder), separate, through=map)
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


def instances_path(folder: Path, sample: Sample) -> Path:
    """Where the instances of an image lie in the folder of their stage."""
    return folder / "instances" / f"{sample.name}.npz"


STAGE = InstanceMasks
