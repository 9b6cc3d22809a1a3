"""Activation maps of the classes that are present. Artifact: one `.npz` per image (see `ops.activation`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import image_size, read_image
from weakseg.data.transforms import Factor
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
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Reads, Stage
from weakseg.progress import Progress

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

STYLES = {"irnet": (resize_maps, divide_by_maximum), "seam": (resize_through_view, stretch_maps)}
"""How maps are resized, and how they are normalised."""

Batch = Sequence[Sample]


class Maps(Stage):
    """Multi-scale and mirrored inference; which classes are present is read from the weak labels.

    In the style `irnet` maps are resized once and divided by their maximum; in the style `seam` they are brought to the
    size of the network's input first, and reach from 0 at their minimum to 1 at their maximum.
    """

    leaves: ClassVar[str] = "maps"
    kind: Literal["maps"] = "maps"
    localiser: Annotated[str, Reads("localiser")]
    scales: tuple[Factor, ...] = Field(default=(1.0, 0.5, 1.5, 2.0), min_length=1)
    stride: int = Field(default=4, gt=0, description="pixels of the image per cell of the saved maps")
    style: Literal["irnet", "seam"] = "irnet"
    batch_size: int = Field(default=8, gt=0, description="images of one size that go through the network together")

    def dependencies(self, context: Context) -> list[str]:
        samples = context.weakly_labelled()
        return [stamps.images(samples), stamps.weak_labels(samples)]

    def run(self, context: Context, folder: Path) -> None:
        resize, normalise = STYLES[self.style]
        device = context.fabric.device
        model = load_model(context.folder(self.localiser) / MODEL_FOLDER)
        make_ready(model, device)

        def read(batch: Batch) -> tuple[Batch, Views]:
            return batch, Views.of([read_image(sample.image) for sample in batch], self.scales, device)

        def compute(inputs: tuple[Batch, Views]) -> Iterator[tuple[Sample, list[int], Size, Tensor]]:
            batch, views = inputs
            labels = [sorted(sample.labels.present()) for sample in batch]
            maps = multi_scale_maps(model.network.activation_maps, views, labels, device, self.stride, resize)
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
            partial(parallel.pipelined, read, compute, write),
        )

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
    yield from shown.heat_maps(read_maps(run.root / name, shown.sample), what)


def complete_batches(
    title: str,
    samples: Sequence[Sample],
    batch_size: int,
    path: Callable[[Sample], Path],
    through: Callable[[list[Batch]], Iterable[object]],
) -> None:
    """What `pipeline.stage.complete` does, for images that go through a network in batches of one size.

    `through` makes the files of all images of the batches that it is given, and yields once for each image.
    """
    batches = parallel.share(same_size_batches(samples, batch_size))
    waiting = [batch for batch in batches if not all(path(sample).exists() for sample in batch)]
    total = sum(map(len, batches))
    with Progress(title, total, done=total - sum(map(len, waiting))) as progress:
        for _ in through(waiting):
            progress.advance()
    parallel.barrier()


def same_size_batches(samples: Sequence[Sample], batch_size: int) -> list[Batch]:
    """Batches of images of one size. They depend on the samples alone, not on what is done already or by whom,
    so that the last bits of the results do not either."""
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for sample, size in zip(samples, parallel.threaded(lambda s: image_size(s.image), samples), strict=True):
        by_size.setdefault(size, []).append(sample)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


STAGE = Maps
