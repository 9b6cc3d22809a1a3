"""Pseudo-masks from activation maps: a background threshold, then dense CRF. Artifact: one palette PNG per image,
`curve.json` (the threshold curve, where there are masks to measure against) and `threshold.json`. Refined maps that
have a background of their own need no threshold and have no curve."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image, read_label_map, write_label_map
from weakseg.files import read_json, write_json
from weakseg.pipeline import stamps
from weakseg.pipeline.inference import against_background, decide, known_crf
from weakseg.pipeline.measures import measure_curve
from weakseg.pipeline.stage import Context, Reads, Stage, complete
from weakseg.pipeline.stages.maps import read_maps

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

DEFAULT_THRESHOLD = 0.3


class Masks(Stage):
    """`threshold` is the score of the background on maps that reach from 0 to 1 and have no background themselves."""

    leaves: ClassVar[str] = "masks"
    kind: Literal["masks"] = "masks"
    maps: Annotated[str, Reads("maps")]
    threshold: float | Literal["auto"] = Field(
        default="auto",
        description=f"auto: the best on the score split, or {DEFAULT_THRESHOLD} where there are no masks",
    )
    crf: str | None = Field(default="affinitynet", description="the name of a set of CRF parameters; null: no CRF")

    @field_validator("crf")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return known_crf(name)

    def dependencies(self, context: Context) -> list[str]:
        return [stamps.images(context.weakly_labelled()), stamps.ground_truth(context.score)]

    def run(self, context: Context, folder: Path) -> None:
        source = context.folder(self.maps)
        threshold = self._threshold(context, source, folder)

        def write(sample: Sample) -> None:
            maps = read_maps(source, sample)
            scores, labels = maps.upsampled(), maps.labels.astype(np.uint8)
            if threshold is not None:
                scores, labels = against_background(scores, threshold), np.array([0, *labels], np.uint8)
            mask = decide(read_image(sample.image), scores, labels, self.crf, context.fabric.device).labels
            write_label_map(mask_path(folder, sample), mask)

        complete("pseudo-masks", context.weakly_labelled(), partial(mask_path, folder), write)

    def _threshold(self, context: Context, source: Path, folder: Path) -> float | None:
        """The threshold to use, None for maps with a background; the curve is measured where there are masks."""
        if read_maps(source, context.train[0]).has_background:
            return self._decided(context, folder, None, "the maps have a background of their own")
        if context.score and not (folder / "curve.json").exists():
            curve = measure_curve(context.score, context.dataset.classes, partial(read_maps, source))
            if parallel.rank() == 0:
                write_json(folder / "curve.json", curve.to_dict())
            parallel.barrier()
        if self.threshold != "auto":
            return self._decided(context, folder, self.threshold, "given")
        if context.score:
            best = read_json(folder / "curve.json")["best_threshold"]
            return self._decided(context, folder, best, "best on the score split")
        return self._decided(context, folder, DEFAULT_THRESHOLD, "default, since no masks are there to choose it")

    def _decided(self, context: Context, folder: Path, threshold: float | None, origin: str) -> float | None:
        context.log("threshold", threshold=threshold, origin=origin)
        if parallel.rank() == 0:
            write_json(folder / "threshold.json", {"threshold": threshold, "origin": origin})
        return threshold

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        if shown.weakly_labelled:
            title = run.titles("masks").get(name, name)
            iou = run.image_iou(title, shown.part).get(shown.sample.name)
            yield shown.label_map(read_label_map(mask_path(run.root / name, shown.sample)), title, iou)


def mask_path(folder: Path, sample: Sample) -> Path:
    """Where the pseudo-mask of an image lies in the folder of its stage."""
    return folder / "masks" / f"{sample.name}.png"


STAGE = Masks
