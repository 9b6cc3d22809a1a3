"""Pseudo-masks from activation maps: a background threshold, then dense CRF, or a method's own rule. Artifact: one
palette PNG per image, `curve.json` (the threshold curve, where there are masks to measure against),
`threshold.json` and, but for a method's own rule, `trust.json` (see `ops.trust`). Refined maps that have a background
of their own need no threshold and have no curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_image, read_label_map, write_jpeg
from weakseg.data.loading import Reader, ReadFolder, folder_readers, read_fields
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.labels import BACKGROUND, label_array
from weakseg.methods.base import Image, MaskRule, absolute, find_method, version_of
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import adaptive_threshold, against_background, own_threshold, usual_threshold
from weakseg.ops.crf_parameters import PARAMETERS, CRFParameters, known_parameters
from weakseg.ops.enlarge import enlarge_label_map
from weakseg.pipeline import stamps
from weakseg.pipeline.choosing import MOST, choose
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.edits import MASKS_FOLDER
from weakseg.pipeline.inference import (
    LabelArray,
    Prediction,
    Threshold,
    decide,
)
from weakseg.pipeline.learning import check_inputs, stage_readers
from weakseg.pipeline.measures import measure_curve
from weakseg.pipeline.stage import THRESHOLD_NAME, Reads, Stage
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.trust import TRUST_NAME, write_trust
from weakseg.progress import Progress
from weakseg.settings import changed, validate
from weakseg.threads import threaded

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

TRIED, HALVINGS = 48, 4
"""So many images tell how far a CRF may reach, and it is halved so often at most."""
RULES = ("auto", "threshold", "own background")

TRIED_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
TRIED_CRFS = ("affinitynet", "irnet")
USUAL_CRF = "deeplab"
"""What is chosen from on masks, besides no CRF; without masks it is the usual CRF."""

Decide = Callable[[Sample], LabelArray]
Background = Callable[[ActivationMaps], float | None]
"""The background's score for the maps of an image; None: the maps have their own."""


def known_or_auto(name: str | None) -> str | None:
    """Check the name of a set of CRF parameters, None for no CRF, or "auto"."""
    return name if name in (None, "auto") else known_parameters(name, "auto", "null")


class Masks(Stage):
    """A rule decides the label of every pixel; `options` and `inputs` are for rules that methods bring."""

    leaves: ClassVar[str] = "masks"
    version: ClassVar[int] = 6
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
        "auto: the best one on the score split, or adaptive: without masks, and where the best is not surely better on "
        f"up to {MOST}",
    )
    crf: Annotated[str | None, AfterValidator(known_or_auto)] = Field(
        default="affinitynet",
        description="the name of a set of CRF parameters; null: no CRF; auto: whether and which, together with the "
        "threshold, is best on some masks of the score split; deeplab where there are no masks",
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
        check_inputs(self.rule, rule.fields, self.inputs, where)
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
        if self.rule in RULES:
            background, decide_mask = self._by_scores(context, folder)
        else:
            background, decide_mask = None, self._by_method(context, folder)

        def write(sample: Sample) -> None:
            context.write_labels(mask_path(folder, sample), decide_mask(sample))

        complete("pseudo-masks", context.weakly_labelled(), partial(mask_path, folder), write)
        write_overlays(context, folder)
        if background is not None:

            def before(maps: ActivationMaps) -> LabelArray:
                scores, labels = _scores(maps, maps.maps.astype(np.float32), background(maps))
                return labels[scores.argmax(0)]

            maps_of = partial(read_maps, context.folder(self.maps))
            write_trust(context, folder, maps_of, before, partial(self.array_of, folder))

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        return read_label_map(mask_path(folder, sample))

    def _by_scores(self, context: Context, folder: Path) -> tuple[Background, Decide]:
        """Where the background of each image begins; and the class with the largest score against it, refined by the
        CRF."""
        source, device = context.folder(self.maps), context.fabric.device
        threshold, origin = self._threshold(context, source, folder)
        choosing_crf = self.crf == "auto" and bool(context.score)
        few = 0 < len(context.score) <= MOST
        thresholds = [threshold]
        if threshold is not None and self.threshold == "auto" and (choosing_crf or few):
            thresholds = ["adaptive", threshold, *(TRIED_THRESHOLDS if choosing_crf else ())]
        usual = _usual_threshold(context, source) if "adaptive" in thresholds else None

        def background(threshold: float | str | None, maps: ActivationMaps) -> float | None:
            return adaptive_threshold(maps, usual) if isinstance(threshold, str) else threshold

        def decide_with(
            threshold: float | str | None, crf: CRFParameters | None, sample: Sample, image: Image
        ) -> Prediction:
            maps = read_maps(source, sample)
            scores, labels = _scores(maps, maps.upsampled(), background(threshold, maps))
            return decide(image, scores, labels, crf, device)

        def mask_with(threshold: float | str | None, crf: CRFParameters | None, sample: Sample) -> LabelArray:
            image = sample.read_image()
            return decide_with(threshold, crf, sample, image).of_file(sample, image).labels

        name = USUAL_CRF if self.crf == "auto" else self.crf
        crf = None if name is None else self._sparing(context, PARAMETERS[name], partial(decide_with, thresholds[0]))
        threshold = thresholds[0]
        if choosing_crf or len(thresholds) > 1:
            crfs: dict[str | None, CRFParameters | None] = {name: crf}
            if choosing_crf:
                crfs |= {None: None} | {other: PARAMETERS[other] for other in TRIED_CRFS}
            choice = choose(
                context.score,
                context.dataset.classes.largest + 1,
                [(threshold, crf) for threshold in thresholds for crf in crfs],
                lambda candidate, sample: mask_with(candidate[0], crfs[candidate[1]], sample),
            )
            threshold, name = choice.candidate
            crf, origin = crfs[name], f"with {f'the CRF {name}' if name else 'no CRF'} {choice}"
        self._decided(context, folder, threshold, origin, usual if threshold == "adaptive" else None)
        return partial(background, threshold), partial(mask_with, threshold, crf)

    def _sparing(
        self,
        context: Context,
        crf: CRFParameters,
        decide_with: Callable[[CRFParameters | None, Sample, Image], Prediction],
    ) -> CRFParameters:
        """The CRF, reaching no farther than the size of the objects allows; no mask is needed to tell."""
        if self.crf_keeps is None:
            return crf
        step = -(-len(context.train) // TRIED)
        tried = parallel.share(context.train[::step])
        before = [int(np.count_nonzero(decide_with(None, sample, sample.read_image()).labels)) for sample in tried]
        farthest = float(np.max(crf.bilateral_sxy))
        for halvings in range(HALVINGS + 1):
            found = crf.within(farthest / 2**halvings)
            after = [int(np.count_nonzero(decide_with(found, sample, sample.read_image()).labels)) for sample in tried]
            kept = [a / b for part in parallel.gather(list(zip(after, before, strict=True))) for a, b in part if b]
            if not kept or float(np.median(kept)) >= self.crf_keeps:
                break
        context.log("crf", reach=farthest / 2**halvings, kept=round(float(np.median(kept)), 4) if kept else None)
        return found

    def _by_method(self, context: Context, folder: Path) -> Decide:
        """What the rule of a method says."""
        method, source = find_method(MaskRule, self.rule), context.folder(self.maps)
        rule, count = method(method.Settings.model_validate(self.options)), context.dataset.classes.largest
        readers: list[Reader] = [*stage_readers(context, self.inputs), *self._folders(context)]
        self._write_curve(context, source, folder)

        def decide_mask(sample: Sample) -> LabelArray:
            item = read_fields(sample, readers, method.fields)
            mask = rule.mask(item, read_maps(source, sample), sample.labels.present(), count)
            return enlarge_label_map(mask, item["image"], read_image(sample.image)) if sample.long_side else mask

        return decide_mask

    def _folders(self, context: Context) -> list[ReadFolder]:
        return folder_readers(find_method(MaskRule, self.rule).fields, context.dataset.folder, self.inputs)

    def _threshold(self, context: Context, source: Path, folder: Path) -> tuple[float | str | None, str]:
        """The threshold to use, None for maps with a background, and where it comes from; the curve is measured where
        there are masks."""
        first = read_maps(source, context.train[0])
        if first.signed:
            raise WeaksegError(
                f'The maps of "{self.maps}" are scores of any sign, which no threshold is meant for. Set rule to a '
                "method that makes masks from them, or the style of the maps to irnet or seam."
            )
        if self.rule == "own background" and not first.has_background:
            raise WeaksegError(f'The maps of "{self.maps}" have no background of their own; set rule to threshold.')
        if first.has_background and self.rule != "threshold":
            return None, "the maps have a background of their own"
        self._write_curve(context, source, folder)
        if not isinstance(self.threshold, str):
            return self.threshold, "given"
        if self.threshold == "auto" and (folder / "curve.json").exists():
            best = read_json(folder / "curve.json")["best_threshold"]
            return best, "best on the score split"
        origin = "given" if self.threshold == "adaptive" else "no masks are there to choose one"
        return "adaptive", origin

    def _write_curve(self, context: Context, source: Path, folder: Path) -> None:
        """The threshold curve of maps without a background of their own, where there are masks."""
        has_background = read_maps(source, context.train[0]).has_background
        if not context.score or has_background or (folder / "curve.json").exists():
            return
        curve = measure_curve(context.score, context.dataset.classes, lambda s: read_maps(source, s).unsigned())
        if parallel.rank() == 0:
            write_json(folder / "curve.json", curve.to_dict())
        parallel.barrier()

    def _decided(
        self, context: Context, folder: Path, threshold: float | str | None, origin: str, usual: float | None
    ) -> None:
        decided = {"threshold": threshold, "origin": origin, "usual": usual}
        context.log("threshold", **decided)
        if parallel.rank() == 0:
            write_json(folder / THRESHOLD_NAME, decided)

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        from weakseg.report.thresholds import thresholds_part
        from weakseg.report.trust import trust_part

        parts = {}
        if (run.root / name / TRUST_NAME).is_file():
            parts["Trust"] = trust_part(run, name)
        if not run.measured and run.stages[name]["rule"] in RULES:
            parts["Pictures"] = thresholds_part(run, name)
        return parts

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        if shown.weakly_labelled:
            title = run.titles("masks").get(name, name)
            iou = run.image_iou(title, shown.part).get(shown.sample.name)
            yield shown.label_map(read_label_map(mask_path(run.root / name, shown.sample)), title, iou)


def mask_path(folder: Path, sample: Sample) -> Path:
    """Where the pseudo-mask of an image lies in the folder of its stage."""
    return folder / MASKS_FOLDER / f"{sample.name}.png"


def write_overlays(context: Context, folder: Path) -> None:
    """Write a small picture of each image with its label map over it, to look through them in any viewer."""
    from weakseg.report.pictures import painted

    def path(sample: Sample) -> Path:
        return folder / "overlays" / f"{sample.name}.jpg"

    def write(sample: Sample) -> None:
        write_jpeg(path(sample), painted(read_image(sample.image), read_label_map(mask_path(folder, sample))))

    complete("overlays", context.weakly_labelled(), path, write)


def _usual_threshold(context: Context, source: Path) -> float | None:
    """The usual threshold of the training images of all processes."""
    mine, found = parallel.share(context.train), []
    with Progress("thresholds of the images", len(mine)) as progress:
        for own in threaded(lambda sample: own_threshold(read_maps(source, sample)), mine):
            found.append(own)
            progress.advance()
    return usual_threshold(own for part in parallel.gather(found) for own in part)


def _scores(
    maps: ActivationMaps, scores: npt.NDArray[np.float32], background: float | None
) -> tuple[npt.NDArray[np.float32], LabelArray]:
    """Scores (R, h, w) of a background and the classes of maps, and their labels (R,), from scores (K, h, w) of the
    maps at some size. Without a score of the background, it is that of the maps."""
    labels = label_array(maps.labels)
    if background is None:
        return scores, labels
    scores, labels = scores[maps.has_background :], labels[maps.has_background :]
    return against_background(scores, background), label_array([BACKGROUND, *labels])


STAGE = Masks
