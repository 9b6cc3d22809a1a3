"""Activation maps of the classes that are present. Artifact: one `.npz` per image (see `ops.activation`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import image_size, read_image
from weakseg.data.transforms import Factor
from weakseg.methods.store import load_model
from weakseg.ops.activation import (
    divide_by_maximum,
    multi_scale_maps,
    normalise_present,
    resize_maps,
    resize_through_view,
    stretch_maps,
)
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Reads, Stage
from weakseg.progress import Progress

STYLES = {"irnet": (resize_maps, divide_by_maximum), "seam": (resize_through_view, stretch_maps)}
"""How maps are resized, and how they are normalised."""


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
        device = context.fabric.device
        network = load_model(context.folder(self.localiser) / MODEL_FOLDER).network.to(device)
        batches = parallel.share(same_size_batches(context.weakly_labelled(), self.batch_size))
        waiting = [batch for batch in batches if not all(map_path(folder, sample).exists() for sample in batch)]
        total = sum(map(len, batches))
        resize, normalise = STYLES[self.style]
        with Progress("activation maps", total, done=total - sum(map(len, waiting))) as progress:
            for batch in waiting:
                images = [read_image(sample.image) for sample in batch]
                maps = multi_scale_maps(network.activation_maps, images, self.scales, device, self.stride, resize)
                for sample, image, scores in zip(batch, images, maps.cpu().numpy(), strict=True):
                    labels, size = sample.labels.present(), image.shape[:2]
                    present = normalise_present(scores, labels, size, self.stride, normalise)
                    present.save(map_path(folder, sample))
                progress.advance(len(batch))


def map_path(folder: Path, sample: Sample) -> Path:
    """Where the activation maps of an image lie in the folder of their stage."""
    return folder / "maps" / f"{sample.name}.npz"


def same_size_batches(samples: Sequence[Sample], batch_size: int) -> list[list[Sample]]:
    """Batches of images of one size. They depend on the samples alone, not on what is done already or by whom,
    so that the last bits of the results do not either."""
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for sample, size in zip(samples, parallel.threaded(lambda s: image_size(s.image), samples), strict=True):
        by_size.setdefault(size, []).append(sample)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


STAGE = Maps
