"""Masks of single instances by a trained refiner that tells them apart. Artifact: `instances/NAME.npz` for each image
(see `ops.instances`) and, where the score split has instances to measure against, `average_precision.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.files import read_json, write_json
from weakseg.ops.average_precision import AveragePrecision
from weakseg.ops.instances import Instances
from weakseg.ops.resize import resize_labels
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.stages.walk import ByRefiner

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

SCORES_NAME = "average_precision.json"


def instances_path(folder: Path, sample: Sample) -> Path:
    """Where the instances of an image lie in the folder of their stage."""
    return folder / "instances" / f"{sample.name}.npz"


class InstanceMasks(ByRefiner):
    """The instances of each image, and how good they are where the truth is known."""

    leaves: ClassVar[str] = "instances"
    title: ClassVar[str] = "instances"
    kind: Literal["instances"] = "instances"
    options_name: ClassVar[str] = "InstanceOptions"

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

    @classmethod
    def report_scores(cls, run: RunFolder, name: str) -> Iterator[Markup]:
        """The average precision of every class, if it was measured."""
        from weakseg.report.markup import table
        from weakseg.report.tables import percent

        path = run.root / name / SCORES_NAME
        if path.is_file():
            scores = read_json(path)
            values = zip(scores["classes"], scores["instances"], scores["average_precision"], strict=True)
            rows = [[label, str(count), percent(value)] for label, count, value in values if count]
            rows.append(["mean", str(sum(scores["instances"])), percent(scores["mean_average_precision"])])
            caption = f"{name}: average precision of instances in percent, on {scores['images']} images"
            yield table(["class", "true instances", f"AP at IoU {scores['min_iou']:g}"], rows, caption)

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        """The instances, each in a colour of its own, which says nothing about its class."""
        from weakseg.report.figures import figure
        from weakseg.report.pictures import painted

        if shown.weakly_labelled:
            numbers = Instances.load(instances_path(run.root / name, shown.sample)).numbered()
            count = f"{numbers.max()} instance{'' if numbers.max() == 1 else 's'}"
            description = f"{name} of {shown.sample.name}: {count}"
            yield figure(painted(shown.image, numbers), f"{name}: {count}", description)


def measure(context: Context, folder: Path) -> AveragePrecision:
    """The average precision on the images of the score split whose instances are known, of all processes."""
    scores = AveragePrecision(context.dataset.classes.largest + 1)
    for sample in parallel.share([sample for sample in context.score if sample.objects is not None]):
        truth = sample.instances()
        if truth is not None:
            found = Instances.load(instances_path(folder, sample))
            if sample.long_side:
                found = replace(found, masks=resize_labels(found.masks, truth.masks.shape[1:]))
            scores.update(truth, found, sample.name)
    return reduce(AveragePrecision.__add__, parallel.gather(scores))


STAGE = InstanceMasks
