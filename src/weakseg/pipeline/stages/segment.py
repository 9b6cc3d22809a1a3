"""Train a segmenter, on pseudo-masks as if they were ground truth or on whatever its method reads. Artifact: a model
folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from weakseg.data.check import require_masks
from weakseg.data.corrections import require_corrections
from weakseg.data.dataset import Sample
from weakseg.data.loading import Reader
from weakseg.errors import WeaksegError
from weakseg.labels import UNLABELLED, VOID
from weakseg.methods.base import Method, Segmenter
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.inference import Inference
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.stage import Reads, Stage

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

NAMES_SHOWN = 20
"""So many corrected images are named in a report."""


class Segment(Learning):
    """A method that reads no labels needs no `masks`."""

    leaves: ClassVar[str] = "segmenter"
    kind: Literal["segment"] = "segment"
    method_kind: ClassVar[type[Method]] = Segmenter
    masks: Annotated[str | None, Reads("masks", "partial")] = Field(
        default=None,
        description="a stage of pseudo-masks or partial label maps, or null for the ground truth of the training split "
        "(full supervision)",
    )
    true_masks: bool = Field(
        default=False,
        description="whether an image that has ground truth is learned with it in place of its pseudo-mask; for a few "
        "images with masks among many with weak labels",
    )
    inference: Inference = Field(
        default=Inference(),
        description="how the trained segmenter is evaluated and, unless told otherwise, used to predict",
    )

    def given(self) -> list[str]:
        return ["labels"] if "labels" in self.method_class().fields and "labels" not in self.inputs else []

    def checked(self, where: str) -> Self:
        if self.given() and "masks" not in self.model_fields_set:
            raise WeaksegError(
                f"{where}.masks: this setting is missing. Name a stage of pseudo-masks, or null for the ground truth."
            )
        return super().checked(where)

    def own_readers(self, context: Context, folder: Path) -> list[Reader]:
        if not self.given():
            return []
        if self.masks is None:
            return [ReadTruth()]
        partial = self.method_class().fields["labels"].partial
        return [ReadLabels(type(context.stages[self.masks]), context.folder(self.masks), partial, self.true_masks)]

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings.pop("inference", None)
        return settings

    def dependencies(self, context: Context) -> list[str]:
        found, samples = super().dependencies(context), self.samples(context)
        if self.given():
            learned = self.masks is None or self.true_masks
            found += [stamps.ground_truth(samples)] if learned else []
            found += filter(None, [stamps.corrections(samples)]) if self.masks is not None else []
        return found

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        if self.learns_from_corrections():
            require_corrections(self.samples(context))
        elif self.given():
            require_ground_truth(self.samples(context))
        if self.learns_from_masks():
            require_masks(self.samples(context))

    def learns_from_corrections(self) -> bool:
        """Whether corrected masks take the place of pseudo-masks."""
        return bool(self.given()) and self.masks is not None

    def learns_from_masks(self) -> bool:
        """Whether the ground truth of images that have it takes the place of their pseudo-masks."""
        return self.learns_from_corrections() and self.true_masks

    def inference_of_model(self) -> dict[str, Any]:
        return self.inference.model_dump(mode="json")

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        corrected = shown.sample.corrected
        if corrected is not None and shown.sample.name in _corrected_names(run, name):
            yield shown.label_map(corrected.read(), "corrected by hand")

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        return {"Training": chain(*super().report_parts(run, name).values(), _part(run, name))}


def _corrected_names(run: RunFolder, name: str) -> Sequence[str]:
    """The images whose corrected masks the stage learned from."""
    return run.data.get("corrected", []) if run.stages[name]["masks"] is not None else []


def _part(run: RunFolder, name: str) -> Iterator[Markup]:
    """How much was learned from masks that people made."""
    from weakseg.report.markup import note

    if names := _corrected_names(run, name):
        noun = "mask was" if len(names) == 1 else "masks were"
        yield note(
            f"{len(names)} {noun} corrected by hand, and {name} learned from them, not from tags alone: "
            f"{_listed(names)}."
        )
    if run.stages[name].get("true_masks") and (names := run.data.get("true_masks", [])):
        yield note(
            f"{name} learned from the ground truth of {len(names)} of {run.data['images']['train']} images, not from "
            f"tags alone: {_listed(names)}. Scores of {name} on these images say nothing of others."
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")


@dataclass(frozen=True)
class ReadTruth:
    """`labels`: the ground truth of a sample."""

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        return {"labels": ground_truth(sample)}


@dataclass(frozen=True)
class ReadLabels:
    """`labels`: the label map that the stage of this folder made for a sample or, in its place, the corrected one or,
    with `true_masks`, the ground truth. Unlabelled pixels are void unless the method tells them apart, which is what
    `partial` says."""

    stage: type[Stage]
    folder: Path
    partial: bool
    true_masks: bool = False

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        if sample.corrected is not None:
            return {"labels": sample.corrected.read()}
        if self.true_masks and sample.mask is not None:
            return {"labels": sample.mask.read()}
        labels = self.stage.array_of(self.folder, sample)
        if self.stage.leaves == "partial" and not self.partial:
            labels = np.where(labels == UNLABELLED, np.uint8(VOID), labels)
        return {"labels": labels}


def require_ground_truth(samples: Sequence[Sample]) -> None:
    """Raise `WeaksegError` unless every sample has a mask."""
    without = [sample.name for sample in samples if sample.mask is None]
    if without:
        raise WeaksegError(
            f"{len(without)} of {len(samples)} images have no ground truth to train on, the first is {without[0]}. "
            "Add their masks, take them out of the split, or set masks to a stage of pseudo-masks."
        )


def ground_truth(sample: Sample) -> npt.NDArray[Any]:
    """The label map of an image; raises `WeaksegError` where it has none."""
    if sample.mask is None:
        raise WeaksegError(f"{sample.name} has no ground truth to train on; set masks to a stage instead.")
    return sample.mask.read()


STAGE = Segment
