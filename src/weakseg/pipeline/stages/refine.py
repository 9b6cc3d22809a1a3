"""Train a refiner of activation maps from images and their maps. Artifact: a model folder, and `evidence/`, one `.npz`
for each training image: what was learned from it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.data.loading import PreparedImages
from weakseg.data.transforms import Augmentation
from weakseg.files import read_npz, write_npz
from weakseg.methods.base import Concluding, Image, Kind, find_method
from weakseg.methods.store import save_model
from weakseg.pipeline import stamps
from weakseg.pipeline.stage import MODEL_FOLDER, Context, Learning, Reads, complete
from weakseg.pipeline.stages.maps import read_maps
from weakseg.progress import Progress


class Refine(Learning):
    """`maps` are those of the training images: nothing but them and the images is learned from."""

    leaves: ClassVar[str] = "refiner"
    kind: Literal["refine"] = "refine"
    method_kind: ClassVar[Kind] = "REFINER"
    maps: Annotated[str, Reads("maps")]

    def dependencies(self, context: Context) -> list[str]:
        return [*super().dependencies(context), stamps.images(self.samples(context))]

    def run(self, context: Context, folder: Path) -> None:
        method = find_method(self.method_kind, self.method)
        settings = method.Settings.model_validate(self.model)
        self._write_evidence(context, folder, partial(method.evidence, settings))
        view = partial(method.training_sample, settings)
        prepare = partial(training_sample, folder, view, self.augment)
        model = self.learn(context, folder, PreparedImages(self.samples(context), prepare, context.seed))
        if isinstance(model.network, Concluding):
            model.network.conclude(self._images(context), context.fabric.device)
        if parallel.rank() == 0:
            save_model(folder / MODEL_FOLDER, model)

    def _images(self, context: Context) -> Iterator[Image]:
        mine = parallel.share(self.samples(context))
        with Progress("looking once more", len(mine)) as progress:
            for sample in mine:
                yield read_image(sample.image)
                progress.advance()

    def _write_evidence(self, context: Context, folder: Path, evidence: Any) -> None:
        source = context.folder(self.maps)

        def write(sample: Sample) -> None:
            maps = read_maps(source, sample)
            write_npz(evidence_path(folder, sample), evidence(read_image(sample.image), maps))

        complete("evidence", self.samples(context), partial(evidence_path, folder), write)


# Not inside of `run`: worker processes that are not forked can only be told what a module holds.
def training_sample(
    folder: Path, view: Any, augmentation: Augmentation, sample: Sample, rng: np.random.Generator
) -> dict[str, Tensor]:
    """A random view of an image and of what is learned from it."""
    made: dict[str, Tensor] = view(read_image(sample.image), read_npz(evidence_path(folder, sample)), augmentation, rng)
    return made


def evidence_path(folder: Path, sample: Sample) -> Path:
    """Where what is learned from an image lies in the folder of its stage."""
    return folder / "evidence" / f"{sample.name}.npz"


STAGE = Refine
