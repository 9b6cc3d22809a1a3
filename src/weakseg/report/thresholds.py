"""Masks at three thresholds, and the command to choose one: for runs whose threshold no ground truth can choose."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from weakseg.data.dataset import Sample
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.labels import Classes, label_array
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import UNDIVIDED, own_threshold, usual_threshold
from weakseg.pipeline.inference import LabelArray
from weakseg.pipeline.stage import THRESHOLD_NAME
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report import pictures
from weakseg.report.figures import Shown, strip
from weakseg.report.markup import Markup, element, note

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder

IMAGES = 6
STEP = 0.15
LOWEST, HIGHEST = 0.05, 0.95


def thresholds_part(run: RunFolder, stage: str) -> Iterator[Markup]:
    """Some images with their masks of a stage below, at and above its threshold, before the CRF, and how to choose one
    of these; nothing where the maps have a background of their own or the data cannot be read."""
    try:
        decided = read_json(run.root / stage / THRESHOLD_NAME)
        classes, parts = run.open_data()
        samples = pictures.spread(list(parts["train"].values()), IMAGES)
        maps = [read_maps(run.root / run.stages[stage]["maps"], sample) for sample in samples]
    except WeaksegError:  # the part of pictures says so
        return
    used = decided["threshold"]
    if used is None:
        return
    levels = _levels(_usual(decided, maps) if isinstance(used, str) else used)
    yield element("h3", f"{stage} at other thresholds")
    text = (
        f"Masks before the CRF; {stage} used the background score {used} on {len(parts['train'])} images. To choose "
        "one threshold for all of them, repeat the command of the run with, for instance, "
    )
    command = (
        f"weakseg run {run.recipe['name']} --data {shlex.quote(run.data['root'])} "
        f"--out {shlex.quote(str(run.root))} --set {stage}.threshold={levels[1]}"
    )
    yield element("p", text, element("code", command), ". The maps are not made again.", class_="explanation")
    for sample, of_image in zip(samples, maps, strict=True):
        try:
            figures = list(_figures(sample, of_image, levels, classes))
        except WeaksegError as error:
            figures = [note(f"Left out: {error}")]
        yield element("article", element("h5", sample.name), strip(figures, 1 + len(levels)))


def _usual(decided: Mapping[str, Any], maps: Sequence[ActivationMaps]) -> float:
    """What is usual in the training images, or in those shown: runs of earlier versions did not write it down."""
    if decided.get("usual") is not None:
        return float(decided["usual"])
    shown = usual_threshold(map(own_threshold, maps))
    return UNDIVIDED if shown is None else shown


def _levels(used: float) -> list[float]:
    """Three thresholds around the one that was used, or that is usual where each image has its own."""
    return [round(min(max(used + step, LOWEST), HIGHEST), 2) for step in (-STEP, 0.0, STEP)]


def _figures(sample: Sample, maps: ActivationMaps, levels: Sequence[float], classes: Classes) -> Iterator[Markup]:
    shown = Shown("train", sample, sample.read_image(), classes)
    yield shown.photo()
    scores = maps.upsampled()
    for level in levels:
        yield shown.label_map(_mask(scores, maps, level), f"threshold {level:.2f}")


def _mask(scores: np.ndarray, maps: ActivationMaps, level: float) -> LabelArray:
    """The class with the largest score where it is above the background's (H, W)."""
    if not len(maps.labels):
        return np.zeros(maps.size, np.uint8)
    best = label_array(maps.labels)[scores.argmax(0)]
    return np.where(scores.max(0) > np.float32(level), best, np.uint8(0))
