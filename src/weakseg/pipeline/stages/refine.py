"""Train a refiner of activation maps from images and their maps. Artifact: a model folder, and `evidence/`, one `.npz`
for each training image: what was learned from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy.typing as npt
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.loading import Reader
from weakseg.files import read_npz, write_npz
from weakseg.methods.base import Method, Refiner, find_method
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.learning import OF_SAMPLES, Learning
from weakseg.pipeline.stage import Reads
from weakseg.pipeline.stages.maps import read_maps


class Refine(Learning):
    """Nothing but the images, their maps and the fields of the method is learned from."""

    leaves: ClassVar[str] = "refiner"
    kind: Literal["refine"] = "refine"
    method_kind: ClassVar[type[Method]] = Refiner
    maps: Annotated[str, Reads("maps")] = Field(
        description="the stage whose maps of the training images are learned from"
    )

    def given(self) -> list[str]:
        fields = self.method_class().fields.items()
        return [
            name
            for name, field in fields
            if name not in (*self.inputs, *OF_SAMPLES) and field.folder is None and field.follows != "geometry"
        ]

    def own_readers(self, context: Context, folder: Path) -> list[Reader]:
        return [ReadEvidence(folder)]

    def run(self, context: Context, folder: Path) -> None:
        self._write_evidence(context, folder)
        super().run(context, folder)

    def _write_evidence(self, context: Context, folder: Path) -> None:
        method, source = find_method(Refiner, self.method), context.folder(self.maps)
        settings = method.Settings.model_validate(self.model)

        def write(sample: Sample) -> None:
            maps = read_maps(source, sample)
            write_npz(evidence_path(folder, sample), method.evidence(settings, sample.read_image(), maps))

        complete("evidence", self.samples(context), partial(evidence_path, folder), write)


@dataclass(frozen=True)
class ReadEvidence:
    """What is learned from a sample, kept in the folder of its stage."""

    folder: Path

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        return read_npz(evidence_path(self.folder, sample))


def evidence_path(folder: Path, sample: Sample) -> Path:
    """Where what is learned from an image lies in the folder of its stage."""
    return folder / "evidence" / f"{sample.name}.npz"


STAGE = Refine
