"""What the runs of a comparison say, recipe by recipe, and how the recipes differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weakseg.files import read_json, read_json_lines
from weakseg.ops.paired import Spread, paired_difference, spread
from weakseg.pipeline.compare import Cell
from weakseg.pipeline.run import RECIPE_NAME
from weakseg.report.folder import RunFolder
from weakseg.training import LOG_NAME

PARTS = ("activation maps", "unrefined masks", "refined maps", "final masks", "segmenter")
"""What is measured in a run, from the first step to the last. The final masks are those that the segmenter learns from;
others are the refined maps as masks if they come from maps made of other maps, and unrefined masks if not. Activation
maps are measured at their best threshold."""


class Score(NamedTuple):
    """The mean IoU in one run, and the IoU of the background and of every class: fractions of 1, None for a class that
    neither the truth nor the masks show."""

    mean_iou: float
    class_iou: Sequence[float | None]


@dataclass(frozen=True)
class Measured:
    """How good one thing is in the runs of one recipe, by seed.

    `part` is one of PARTS, `number` tells those of the same part in one recipe apart, `title` is the recipe's own.
    """

    run: str
    part: str
    number: int
    split: str
    title: str
    scores: Mapping[int, Score]

    @property
    def group(self) -> tuple[int, int, str]:
        """Rows of the same group, in different recipes, are compared."""
        return PARTS.index(self.part), self.number, self.split

    def mean_iou(self) -> dict[int, float]:
        """Seed → mean IoU."""
        return {seed: score.mean_iou for seed, score in self.scores.items()}

    def class_iou(self, label: int) -> dict[int, float]:
        """Seed → IoU of one class (0: the background), without the seeds for which it is not defined."""
        found = {seed: score.class_iou[label] for seed, score in self.scores.items()}
        return {seed: iou for seed, iou in found.items() if iou is not None}


@dataclass(frozen=True)
class Row:
    """A line of the table: a recipe's result, and its differences to `reference`, the result of the first recipe that
    has one of the same group (None: it is that one)."""

    measured: Measured
    result: Spread
    reference: Measured | None
    difference: Spread | None


@dataclass(frozen=True)
class Work:
    """What one stage of a recipe took, by seed. `passes` are the images that went through its training, repeated ones
    counted each time; None for stages that learn nothing."""

    run: str
    stage: str
    kind: str
    seconds: Mapping[int, float]
    passes: Mapping[int, int] | None
    epochs: Mapping[int, float] | None
    reused: Sequence[int]


@dataclass(frozen=True)
class Comparison:
    """Everything that the runs of a comparison have to say so far. `classes` begin with the background."""

    runs: Sequence[str]
    seeds: Sequence[int]
    data: str
    classes: Sequence[str]
    rows: Sequence[Row]
    work: Sequence[Work]
    unfinished: Mapping[str, str]

    @classmethod
    def read(cls, cells: Sequence[Cell], failed: Mapping[Path, str]) -> Comparison:
        """`failed` says why a run has failed: folder → message."""
        runs = list(dict.fromkeys(cell.recipe.name for cell in cells))
        seeds = sorted({cell.recipe.seed for cell in cells})
        by_run: dict[str, dict[int, RunFolder]] = {run: {} for run in runs}
        unfinished: dict[str, str] = {}
        for cell in cells:
            folder = RunFolder.read(cell.folder) if (cell.folder / RECIPE_NAME).is_file() else None
            if folder is None or folder.unfinished or cell.folder in failed:
                unfinished[cell.title] = failed.get(cell.folder, "not finished yet")
            else:
                by_run[cell.recipe.name][cell.recipe.seed] = folder
        folders = [folder for of_seed in by_run.values() for folder in of_seed.values()]
        data = ", ".join(sorted({str(folder.data["root"]) for folder in folders}))
        classes = ["background", *folders[0].data["classes"]] if folders else []
        measured = [result for run, of_seed in by_run.items() for result in _measured(run, of_seed)]
        work = [stage for run, of_seed in by_run.items() for stage in _work(run, of_seed)]
        return cls(runs, seeds, data, classes, compared(measured), work, unfinished)


def compared(measured: Sequence[Measured]) -> list[Row]:
    """The rows of the table, those that are compared below each other."""
    rows = []
    for group in sorted({result.group for result in measured}):
        first, *others = (result for result in measured if result.group == group)
        rows.append(Row(first, _spread(first), None, None))
        rows += [
            Row(other, _spread(other), first, paired_difference(other.mean_iou(), first.mean_iou())) for other in others
        ]
    return rows


def _spread(measured: Measured) -> Spread:
    return spread(list(measured.mean_iou().values()))


def _measured(run: str, folders: Mapping[int, RunFolder]) -> Iterator[Measured]:
    found: dict[tuple[str, int, str, str], dict[int, Score]] = {}
    for seed, folder in folders.items():
        for key, row in _scores(folder):
            if row["mean_iou"] is not None:
                found.setdefault(key, {})[seed] = Score(row["mean_iou"], row["iou"])
    for (part, number, split, title), scores in found.items():
        yield Measured(run, part, number, split, title, scores)


def _scores(folder: RunFolder) -> Iterator[tuple[tuple[str, int, str, str], Mapping[str, Any]]]:
    """What is measured (part, number, split, title), and its row of scores."""
    counts: dict[tuple[str, str], int] = {}
    for name, evaluate in folder.of_kind("evaluate").items():
        for row in read_json(folder.root / name / "scores.json")["rows"]:
            part, split = _part(row, evaluate, folder), row["split"]
            number = counts.get((part, split), 0)
            counts[part, split] = number + 1
            yield (part, number, split, row["title"]), row


def _part(row: Mapping[str, Any], evaluate: Mapping[str, Any], folder: RunFolder) -> str:
    if "threshold" in row:  # only threshold curves have one
        return "refined maps" if _is_refined(evaluate["curves"][row["title"]], folder) else "activation maps"
    source = evaluate["masks"].get(row["title"])
    if source is None:
        return "segmenter"
    if source == _final_masks(folder):
        return "final masks"
    return "refined maps" if _is_refined(source, folder) else "unrefined masks"


def _is_refined(masks: str, folder: RunFolder) -> bool:
    """Whether pseudo-masks come from maps that were made of other maps."""
    maps = folder.stages[masks].get("maps")
    return maps is not None and "maps" in folder.stages[maps]


def _final_masks(folder: RunFolder) -> str | None:
    masks = folder.leaving("masks")
    learned = [folder.stages[segmenter].get("masks") for segmenter in folder.leaving("segmenter")]
    return next((name for name in reversed(masks) if name in learned), masks[-1] if masks else None)


def _work(run: str, folders: Mapping[int, RunFolder]) -> Iterator[Work]:
    stages: Mapping[str, Mapping[str, Any]] = next(iter(folders.values())).stages if folders else {}
    for name, stage in stages.items():
        manifests = {seed: folder.manifests[name] for seed, folder in folders.items()}
        reused = [seed for seed, manifest in manifests.items() if "reused_from" in manifest]
        seconds = {seed: manifest["seconds"] for seed, manifest in manifests.items()}
        passes = epochs = None
        if "train" in stage:
            last = {seed: read_json_lines(folder.root / name / LOG_NAME)[-1] for seed, folder in folders.items()}
            passes = {seed: line["step"] * stage["train"]["batch_size"] for seed, line in last.items()}
            # Of the images that the stage learns from, which may be fewer than the training split has.
            epochs = {seed: stage["train"]["epochs"] or line["epoch"] for seed, line in last.items()}
        yield Work(run, name, stage["kind"], seconds, passes, epochs, reused)
