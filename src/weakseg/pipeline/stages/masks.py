"""Pseudo-masks from activation maps: a background threshold, then dense CRF, or a method's own rule. Artifact: one
palette PNG per image, `curve.json` (the threshold curve, where there are masks to measure against) and
`threshold.json`. Refined maps that have a background of their own need no threshold and have no curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image, read_label_map, write_label_map
from weakseg.data.loading import Reader, ReadFolder, folder_readers, read_fields
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.methods.base import MaskRule, absolute, find_method, version_of
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.crf_parameters import PARAMETERS, CRFParameters, known_or_none
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.edits import MASKS_FOLDER
from weakseg.pipeline.inference import (
    LabelArray,
    Threshold,
    adaptive_threshold,
    against_background,
    decide,
    own_threshold,
)
from weakseg.pipeline.learning import stage_readers
from weakseg.pipeline.measures import measure_curve
from weakseg.pipeline.stage import Reads, Stage
from weakseg.pipeline.stages.maps import read_maps
from weakseg.settings import changed, validate

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

TRIED, HALVINGS = 48, 4
"""So many images tell how far a CRF may reach, and it is halved so often at most."""
RULES = ("auto", "threshold", "own background")

T = TypeVar("T")
Decide = Callable[[Sample], LabelArray]


class Masks(Stage):
    """A rule decides the label of every pixel; `options` and `inputs` are for rules that methods bring."""

    leaves: ClassVar[str] = "masks"
    version: ClassVar[int] = 2
    kind: Literal["masks"] = "masks"
    maps: Annotated[str, Reads("maps")] = Field(description="the stage that made the maps")
    rule: str = Field(
        default="auto",
        description="threshold: the best class where it is above a threshold; own background: the background that maps "
        "have themselves; auto: the latter where they have one; or the name of a method that brings a rule",
    )
    threshold: Threshold | Literal["auto", "adaptive"] = Field(
        default="auto",
        description="score of the background on maps from 0 to 1; adaptive: found in each image's maps, without masks; "
        "auto: the best one on the score split, or adaptive where there are no masks",
    )
    crf: Annotated[str | None, AfterValidator(known_or_none)] = Field(
        default="affinitynet", description="the name of a set of CRF parameters; null: no CRF"
    )
    crf_keeps: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="part of the foreground that the CRF has to leave in the median image; its colours reach half as "
        "far until it does, since it takes away what is small; null: they reach as far as its parameters say",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the settings of a method's rule")
    inputs: Annotated[dict[str, str], Reads()] = Field(
        default_factory=dict, description="fields that a method's rule reads: name → stage that makes them"
    )

    def checked(self, where: str) -> Self:
        if self.rule in RULES:
            if self.options or self.inputs:
                raise WeaksegError(f'{where}: the rule "{self.rule}" has neither options nor inputs; leave them out.')
            return self
        rule = find_method(MaskRule, self.rule)
        for name, field in rule.fields.items():
            if name not in self.inputs and field.folder is None:
                raise WeaksegError(
                    f'{where}.inputs: the rule {self.rule} reads "{name}"; name the stage that makes it.'
                )
        options = validate(rule.Settings, self.options, f"{where}.options")
        return self.model_copy(update={"rule": absolute(self.rule), "options": options.model_dump(mode="json")})

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        if self.rule not in RULES:
            settings["rule"] = Path(self.rule).name
            settings["options"] = changed(find_method(MaskRule, self.rule).Settings, self.options)
        return settings

    def versions(self) -> list[Any]:
        of_rule = [] if self.rule in RULES else version_of(find_method(MaskRule, self.rule))
        return [*super().versions(), *of_rule]

    def dependencies(self, context: Context) -> list[str]:
        samples = context.weakly_labelled()
        folders = [] if self.rule in RULES else [stamps.files(map(r.path, samples)) for r in self._folders(context)]
        return [stamps.images(samples), stamps.ground_truth(context.score), *folders]

    def run(self, context: Context, folder: Path) -> None:
        decide_mask = self._by_scores(context, folder) if self.rule in RULES else self._by_method(context, folder)

        def write(sample: Sample) -> None:
            write_label_map(mask_path(folder, sample), decide_mask(sample))

        complete("pseudo-masks", context.weakly_labelled(), partial(mask_path, folder), write)

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        return read_label_map(mask_path(folder, sample))

    def _by_scores(self, context: Context, folder: Path) -> Decide:
        """The class with the largest score, against a threshold or a background's score, refined by the CRF."""
        source, device = context.folder(self.maps), context.fabric.device
        threshold = self._threshold(context, source, folder)
        usual = _usual_threshold(context, source) if threshold == "adaptive" else None

        def decide_with(crf: CRFParameters | None, sample: Sample) -> LabelArray:
            scores, labels = _scores(read_maps(source, sample), threshold, usual)
            return decide(read_image(sample.image), scores, labels, crf, device).labels

        crf = None if self.crf is None else self._sparing(context, PARAMETERS[self.crf], decide_with)
        return partial(decide_with, crf)

    def _sparing(
        self, context: Context, crf: CRFParameters, decide_with: Callable[[CRFParameters | None, Sample], LabelArray]
    ) -> CRFParameters:
        """The CRF, reaching no farther than the size of the objects allows; no mask is needed to tell."""
        if self.crf_keeps is None:
            return crf
        step = -(-len(context.train) // TRIED)
        tried = parallel.share(context.train[::step])
        before = [int(np.count_nonzero(decide_with(None, sample))) for sample in tried]
        farthest = float(np.max(crf.bilateral_sxy))
        for halvings in range(HALVINGS + 1):
            found = crf.within(farthest / 2**halvings)
            after = [int(np.count_nonzero(decide_with(found, sample))) for sample in tried]
            kept = [a / b for part in parallel.gather(list(zip(after, before, strict=True))) for a, b in part if b]
            if not kept or float(np.median(kept)) >= self.crf_keeps:
                break
        context.log("crf", reach=farthest / 2**halvings, kept=round(float(np.median(kept)), 4) if kept else None)
        return found

    def _by_method(self, context: Context, folder: Path) -> Decide:
        """What the rule of a method says."""
        method, source = find_method(MaskRule, self.rule), context.folder(self.maps)
        rule, count = method(method.Settings.model_validate(self.options)), len(context.dataset.classes)
        readers: list[Reader] = [*stage_readers(context, self.inputs), *self._folders(context)]
        self._write_curve(context, source, folder)

        def decide_mask(sample: Sample) -> LabelArray:
            item = read_fields(sample, readers, method.fields)
            return rule.mask(item, read_maps(source, sample), sample.labels.present(), count)

        return decide_mask

    def _folders(self, context: Context) -> list[ReadFolder]:
        return folder_readers(find_method(MaskRule, self.rule).fields, context.dataset.folder, self.inputs)

    def _threshold(self, context: Context, source: Path, folder: Path) -> float | Literal["adaptive"] | None:
        """The threshold to use, None for maps with a background; the curve is measured where there are masks."""
        first = read_maps(source, context.train[0])
        if first.signed:
            raise WeaksegError(
                f'The maps of "{self.maps}" are scores of any sign, which no threshold is meant for. Set rule to a '
                "method that makes masks from them, or the style of the maps to irnet or seam."
            )
        if self.rule == "own background" and not first.has_background:
            raise WeaksegError(f'The maps of "{self.maps}" have no background of their own; set rule to threshold.')
        if first.has_background and self.rule != "threshold":
            return self._decided(context, folder, None, "the maps have a background of their own")
        self._write_curve(context, source, folder)
        if not isinstance(self.threshold, str):
            return self._decided(context, folder, self.threshold, "given")
        if self.threshold == "auto" and (folder / "curve.json").exists():
            best = read_json(folder / "curve.json")["best_threshold"]
            return self._decided(context, folder, best, "best on the score split")
        origin = "given" if self.threshold == "adaptive" else "no masks are there to choose one"
        return self._decided(context, folder, "adaptive", origin)

    def _write_curve(self, context: Context, source: Path, folder: Path) -> None:
        """The threshold curve of maps without a background of their own, where there are masks."""
        has_background = read_maps(source, context.train[0]).has_background
        if not context.score or has_background or (folder / "curve.json").exists():
            return
        curve = measure_curve(context.score, context.dataset.classes, lambda s: read_maps(source, s).unsigned())
        if parallel.rank() == 0:
            write_json(folder / "curve.json", curve.to_dict())
        parallel.barrier()

    def _decided(self, context: Context, folder: Path, threshold: T, origin: str) -> T:
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
    return folder / MASKS_FOLDER / f"{sample.name}.png"


def _usual_threshold(context: Context, source: Path) -> float | None:
    """The mean of the training images' own thresholds: what they fall back on where they say little."""
    found = [own_threshold(read_maps(source, sample)) for sample in parallel.share(context.train)]
    known = sorted(own for part in parallel.gather(found) for own in part if own is not None)
    return float(np.mean(known)) if known else None


def _scores(
    maps: ActivationMaps, threshold: float | str | None, usual: float | None
) -> tuple[npt.NDArray[np.float32], LabelArray]:
    """Scores (R, H, W) of a background and the classes of maps, and their labels (R,). Without a threshold, the
    background is that of the maps."""
    scores, labels = maps.upsampled(), maps.labels.astype(np.uint8)
    if threshold is None:
        return scores, labels
    background = float(threshold) if threshold != "adaptive" else adaptive_threshold(maps, usual)
    scores, labels = scores[maps.has_background :], labels[maps.has_background :]
    return against_background(scores, background), np.array([0, *labels], np.uint8)


STAGE = Masks
