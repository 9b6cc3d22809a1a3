"""Measure everything a run made. Artifact: `scores.json`, `summary.json`, plots, and the predicted label maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import read_label_map
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.inference import Inference
from weakseg.pipeline.measures import LabelMap, measure_context, measure_masks
from weakseg.pipeline.recipe_files import round_of
from weakseg.pipeline.stage import Reads, Stage
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.masks import Masks, mask_path
from weakseg.pipeline.stages.predict import predict_samples
from weakseg.pipeline.stages.segment import Segment
from weakseg.tensorboard import EventFile

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup


class Evaluate(Stage):
    """Each entry is a row of the table: its title → the stage that made what is measured.

    `curves` are stages of pseudo-masks, whose threshold curve over the activation maps is reported, and how much of
    these maps falls on the contexts of their classes, where the data have context masks; `masks` the same stages'
    pseudo-masks; both are measured on the score split. `segmenters` are measured on the val split, and on
    the score split as well; without one, they predict the training images, to be looked at. A title over null is no
    row; a recipe says so of rows that it does not want to inherit.
    """

    kind: Literal["evaluate"] = "evaluate"
    curves: Annotated[dict[str, str], Reads("masks")] = Field(
        default_factory=dict, description="title → stage of pseudo-masks whose maps are measured at every threshold"
    )
    masks: Annotated[dict[str, str], Reads("masks")] = Field(default_factory=dict, description="title → stage of masks")
    segmenters: Annotated[dict[str, str], Reads("segmenter")] = Field(
        default_factory=dict, description="title → stage that trained a segmenter"
    )

    @field_validator("curves", "masks", "segmenters", mode="before")
    @classmethod
    def _without_null(cls, rows: Any) -> Any:
        return {title: stage for title, stage in rows.items() if stage is not None} if isinstance(rows, dict) else rows

    def reads_weak_labels(self) -> bool:
        return False

    def dependencies(self, context: Context) -> list[str]:
        parts = (context.score, context.val)
        data = [*map(stamps.images, parts), *map(stamps.ground_truth, parts)]
        data += filter(None, [stamps.contexts(context.score)])
        return [*data, *(self._application(context, name) for name in self.segmenters.values())]

    def _application(self, context: Context, segmenter: str) -> str:
        inference = self._inference(context, segmenter)
        windows = "" if inference.window == "auto" else f" window={inference.window}"
        return f"{segmenter} {inference}{windows}"

    def _inference(self, context: Context, segmenter: str) -> Inference:
        stage = context.stages[segmenter]
        assert isinstance(stage, Segment)
        return stage.inference

    def prepare(self, context: Context) -> None:
        for title, name in self.curves.items():
            stage = context.stages[name]
            if not isinstance(stage, Masks) or stage.rule == "own background":
                raise WeaksegError(
                    f'"{name}" has no threshold curve: it makes no masks from maps without a background of their own. '
                    f'Name "{title}" under masks instead of curves.'
                )

    def run(self, context: Context, folder: Path) -> None:
        rows: list[dict[str, Any]] = []
        if context.score:
            for title, stage in self.curves.items():
                path = context.folder(stage) / "curve.json"
                if not path.exists():
                    raise WeaksegError(
                        f'"{stage}" has no threshold curve, since its maps have a background of their own. '
                        f'Name "{title}" under masks instead of curves.'
                    )
                curve = read_json(path)
                more = _on_context(context, stage)
                rows.append(_row(title, "score", curve["best"], threshold=curve["best_threshold"], **more))
            for title, stage in self.masks.items():
                source = context.folder(stage)
                rows.append(_measure(context, title, "score", context.score, lambda s, f=source: mask_path(f, s)))
        for title, stage in self.segmenters.items():
            looked_at = [] if context.score else context.train
            for split, samples in (("score", context.score), ("train", looked_at), ("val", context.val)):
                if not samples:
                    continue
                predictions = folder / "predictions" / stage
                predict_samples(
                    context, stage, self._inference(context, stage), samples, partial(prediction_path, predictions)
                )
                if split != "train":
                    rows.append(
                        _measure(context, title, split, samples, lambda s, f=predictions: prediction_path(f, s))
                    )
        if parallel.rank() == 0:
            write_json(
                folder / "scores.json", {"classes": ["background", *context.dataset.classes.names], "rows": rows}
            )
            write_json(folder / "summary.json", [{k: row[k] for k in SUMMARY_KEYS if k in row} for row in rows])
            if context.runtime.tensorboard:
                _show_in_tensorboard(rows, context, folder)

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        for title, segmenter in run.stages[name]["segmenters"].items():
            path = prediction_path(run.root / name / "predictions" / segmenter, shown.sample)
            # Training images are predicted only where nothing can be measured on them.
            if shown.part != "train" or path.is_file():
                iou = run.image_iou(title, shown.part).get(shown.sample.name)
                yield shown.label_map(read_label_map(path), title, iou)


SUMMARY_KEYS = ("title", "split", "images", "threshold", "mean_iou", "mean_iou_present", "boundary_f", "context")


def prediction_path(folder: Path, sample: Sample) -> Path:
    """Where the prediction for an image lies."""
    return folder / f"{sample.name}.png"


def _measure(context: Context, title: str, split: str, samples: Sequence[Sample], path: Any) -> dict[str, Any]:
    def read(sample: Sample) -> LabelMap:
        return read_label_map(path(sample))

    scores = measure_masks(samples, context.dataset.classes, read, f"measuring {title}").to_dict()
    return _row(title, split, scores, boundary_f=scores["boundary"]["mean_f_score"])


def _on_context(context: Context, masks: str) -> dict[str, Any]:
    """How much of the activation behind pseudo-masks falls on contexts, where the data tell them."""
    if not any(sample.context for sample in context.score):
        return {}
    stage = context.stages[masks]
    assert isinstance(stage, Masks)
    source = context.folder(stage.maps)
    scores = measure_context(context.score, context.dataset.classes, lambda s: read_maps(source, s).unsigned())
    return {"context": scores}


def _row(title: str, split: str, scores: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"title": title, "split": split, **more, **scores}


def scores_of_round(rows: Sequence[Mapping[str, Any]], number: int) -> dict[str, float]:
    """What was measured in a round, called what it is in the first one, and the split → mean IoU."""
    scores = {}
    for row in rows:
        # Titles of later rounds have their number behind a comma.
        title = row["title"] if number == 0 else row["title"].rpartition(",")[0] or row["title"]
        if row["mean_iou"] is not None:
            scores[f"{title}, {row['split']}"] = row["mean_iou"]
    return scores


def _show_in_tensorboard(rows: Sequence[Mapping[str, Any]], context: Context, folder: Path) -> None:
    """Write the mean IoU of each row at the number of the round, so that rounds are points of one plot."""
    number = round_of(folder.relative_to(context.root).as_posix())
    scores = {f"mean_iou/{title}": score for title, score in scores_of_round(rows, number).items()}
    with closing(EventFile(folder)) as events:
        events.add({"step": number, **scores})


STAGE = Evaluate
