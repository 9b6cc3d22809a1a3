"""Predict files: images in, palette masks, overlays and arrays out."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from weakseg.data.folder import read_tags
from weakseg.data.images import IMAGE_SUFFIXES, overlay, read_image, stored_values, write_image, write_label_map
from weakseg.errors import WeaksegError, out_of_memory
from weakseg.files import read_json, write_csv, write_json, write_npz
from weakseg.methods.base import Item, Localiser
from weakseg.methods.store import CONFIG_NAME, Model, load_model, make_ready
from weakseg.ops.resize import shrink_image
from weakseg.pipeline.inference import (
    PRESENT,
    Inference,
    Prediction,
    all_labels,
    predict,
    predict_batches,
    require_images_only,
)
from weakseg.pipeline.run import DATA_NAME, RECIPE_NAME, recipe_of
from weakseg.pipeline.stage import MODEL_FOLDER, THRESHOLD_NAME
from weakseg.progress import Progress
from weakseg.report.folder import RunFolder
from weakseg.settings import validate

Job = tuple[Path, Path]
"""An image, and the path of its outputs below the output folder, without suffix."""

NO_EFFECT = {"segmenter": "threshold", "localiser": "mirror"}
"""A segmenter has no threshold, and activation maps are always made from the image and its mirror image."""


def find_model(path: Path) -> Model:
    """The model in a model folder, or the last model that a run made, a segmenter if there is one."""
    if (path / CONFIG_NAME).is_file():
        return _checked(_loaded(path), path)
    if (path / RECIPE_NAME).is_file():
        stages = recipe_of(path)["stages"]
        made = [path / name / MODEL_FOLDER for name in stages if (path / name / MODEL_FOLDER / CONFIG_NAME).is_file()]
        loaded = (model for model in map(_loaded, made) if model.kind != "refiner")
        models = sorted(loaded, key=lambda model: model.kind == "segmenter")
        if models:
            return models[-1]
        raise WeaksegError(f"The run in {path} has not finished any model yet. Let it go on: `weakseg run`.")
    raise WeaksegError(f"{path} is neither a model folder (with {CONFIG_NAME}) nor a run (with {RECIPE_NAME}).")


def _loaded(path: Path) -> Model:
    """The model of a folder. A localiser that lies in its run makes maps, and decides, as for the run's first masks."""
    model, stage = load_model(path), path.absolute().parent
    root = next((folder for folder in stage.parents if (folder / DATA_NAME).is_file()), None)
    network = model.network
    if not isinstance(network, Localiser) or root is None:
        return model
    run, name = RunFolder.read(root), stage.relative_to(root).as_posix()
    decision = _decision(run, name) if name in run.manifests else None
    if decision is None:
        return model
    maps, decided = decision
    made = run.stages[maps]
    told = {**network.options.model_dump(), **made.get("options", {})}
    network.options = validate(type(network).Options, told, f"{root / RECIPE_NAME}: {maps}")
    inference = {**model.inference, "scales": made["scales"], "threshold": decided["threshold"]}
    return replace(model, inference=inference, usual_threshold=decided.get("usual"))


def _decision(run: RunFolder, localiser: str) -> tuple[str, dict[str, Any]] | None:
    """The maps of a localiser that a run's first masks were made from, and how their background was decided; None where
    there are no such masks, or `predict` cannot make such maps."""
    # Other styles are normalised in a way that `predict` does not know, and have other thresholds.
    maps = [
        name
        for name, settings in run.of_kind("maps").items()
        if settings["localiser"] == localiser and settings["style"] == "irnet"
    ]
    for masks, settings in run.of_kind("masks").items():
        path = run.root / masks / THRESHOLD_NAME
        if settings["maps"] in maps and path.is_file():
            decided = read_json(path)
            if decided["threshold"] is not None:
                return settings["maps"], decided
    return None


def _checked(model: Model, path: Path) -> Model:
    if model.kind == "refiner":
        raise WeaksegError(
            f"{path} holds the refiner {model.method}, which only improves the maps of a localiser. Give the run's "
            "folder, or the model folder of its segmenter or localiser."
        )
    return model


def checked_changes(model: Model, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of the inference settings; raises `WeaksegError` for one that has no effect on this kind of model."""
    if NO_EFFECT[model.kind] in changes:
        raise WeaksegError(f"{NO_EFFECT[model.kind]} has no effect on a {model.kind}; leave it out.")
    return changes


def image_files(inputs: Sequence[Path], out: Path) -> list[Job]:
    """The images among files and folders, each with the path of its outputs below the output folder, without suffix.

    Folders are searched through all levels; hidden files, and what lies in the folder `out`, are left out. Raises
    `WeaksegError` for nothing found and for two images that share an output.
    """
    found: dict[Path, Path] = {}
    for source in inputs:
        if not source.exists():
            raise WeaksegError(f"{source} does not exist.")
        images = _images_below(source, out.resolve()) if source.is_dir() else [source]
        if not images:
            raise WeaksegError(f"{source} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        for file in images:
            name = Path(unicodedata.normalize("NFC", str(file.relative_to(source) if source.is_dir() else file.name)))
            output = name.with_suffix("")
            if output in found and found[output] != file:
                raise WeaksegError(f"{found[output]} and {file} would both be written as {output}.png. Rename one.")
            found[output] = file
    return [(file, output) for output, file in found.items()]


def _images_below(folder: Path, out: Path) -> list[Path]:
    def wanted(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return not hidden and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()

    return sorted(file for file in folder.rglob("*") if wanted(file) and out not in file.resolve().parents)


class Outcome(NamedTuple):
    """How the classes were decided (a sentence), for how many images, and why there is nothing of the others."""

    how: str
    images: int
    failures: list[str]


def predict_files(
    model: Model,
    inputs: Sequence[Path],
    out: Path,
    *,
    changes: dict[str, Any],
    device: torch.device,
    probabilities: bool = False,
    overlays: bool = True,
    table: bool = False,
    tags: Path | None = None,
) -> Outcome:
    """Write `masks/NAME.png` (palette), `overlays/NAME.png` and, with `probabilities`, `scores/NAME.npz` for every
    image, and `classes.json`; with `table`, `areas.csv`, the pixels of every class in every image. `changes` overrides
    the inference settings that the model was evaluated with. `tags` is a `labels.csv` or `labels.json` that says which
    classes are in the images that it names; a localiser then need not decide that.

    An image that cannot be read, or is too large for the memory, does not keep the others from their results.
    """
    require_images_only(model)
    inference = validate(Inference, {**model.inference, **checked_changes(model, changes)}, "inference")
    if tags is not None and model.kind == "segmenter":
        raise WeaksegError("--tags has no effect on a segmenter, which decides every pixel by itself; leave it out.")
    files = image_files(inputs, out)
    named = {output.as_posix(): file for file, output in files}
    known = {} if tags is None else read_tags(tags, named, model.classes)
    if tags is not None and not known:
        raise WeaksegError(f"{tags} says nothing of any of the {len(files)} images, such as {next(iter(named))}.")
    make_ready(model, device)
    values = {name: value for value, name in enumerate(model.classes.names, start=1)}
    write_json(out / "classes.json", {"background": 0, **values, "void": model.classes.void_value})
    keep_scores = probabilities or model.long_side is not None  # results are enlarged by them
    deep, failures = model.classes.deep, dict[Job, str]()
    areas: dict[Job, list[int]] = {}

    def present(job: Job) -> frozenset[int] | None:
        return known.get(job[1].as_posix())

    def read(job: Job) -> Item | None:
        try:
            return {"image": shrink_image(read_image(job[0]), model.long_side)}
        except WeaksegError as error:
            failures[job] = str(error)
            return None

    def write(job: Job, item: Item, prediction: Prediction) -> None:
        image = item["image"]
        if model.long_side is not None and max(image.shape) >= model.long_side:
            image = read_image(job[0])
            prediction = prediction.enlarged(item["image"], image, keep_scores=probabilities)
        if overlays:
            write_image(_output(out, "overlays", job[1], ".png"), overlay(image, prediction.labels))
        if probabilities:
            numbers = stored_values(prediction.score_labels, deep=deep)
            arrays = {"labels": numbers, "scores": prediction.scores.astype("float16")}
            write_npz(_output(out, "scores", job[1], ".npz"), arrays)
        # Last, so that an image that fails for want of memory leaves no mask.
        write_label_map(_output(out, "masks", job[1], ".png"), prediction.labels, deep=deep)
        counts = np.bincount(prediction.labels.ravel(), minlength=1 + model.classes.largest)
        areas[job] = counts[all_labels(model.classes)].tolist()

    def predict_alone(job: Job) -> None:
        try:
            if (item := read(job)) is not None:
                image = item["image"]
                write(job, item, predict(model, image, inference, device, present(job), keep_scores=keep_scores))
        except Exception as error:
            if not out_of_memory(error):
                raise
            failures[job] = (
                f"{job[0]} is too large for the memory. Scale it down, give smaller or fewer --scales, or --crf none."
            )

    with Progress("predicting", len(files)) as progress:
        try:
            for _ in predict_batches(
                model, [[job] for job in files], read, write, inference, device, present, keep_scores=keep_scores
            ):
                progress.advance()
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Several images are under way at a time. One by one, only those fail that are too large by themselves.
        for job in files:
            if job not in areas and job not in failures:
                predict_alone(job)
                progress.advance()
        progress.advance(len(failures))
    if table:
        _write_areas(out / "areas.csv", model, {job: areas[job] for job in files if job in areas})
    in_order = [failures[job] for job in files if job in failures]
    return Outcome(_how(model, inference, len(known), len(files)), len(areas), in_order)


def _write_areas(path: Path, model: Model, areas: Mapping[Job, Sequence[int]]) -> None:
    """CSV: an image in each row, its pixels in all, those of the background and those of each class."""
    rows = (
        [(output.parent / file.name).as_posix(), sum(of_image), *of_image] for (file, output), of_image in areas.items()
    )
    write_csv(path, ["image", "pixels", "background", *model.classes.names], rows)


def _output(out: Path, kind: str, name: Path, suffix: str) -> Path:
    return out / kind / name.parent / (name.name + suffix)


def _how(model: Model, inference: Inference, known: int, images: int) -> str:
    refined = f", refined by dense CRF ({inference.crf})" if inference.crf else ""
    if model.kind == "segmenter":
        return f"The segmenter {model.method} decided every pixel among {len(model.classes)} classes{refined}."
    by_score = f"decided by its own scores which classes are present (probability ≥ {PRESENT})"
    if known:
        by_score = f"was told which classes are present in {known} of {images} images" + (
            f", {by_score} in the others" if known < images else ""
        )
    return (
        f"The classifier {model.method} {by_score} and by its activation maps where (threshold {inference.threshold})"
        f"{refined}. A segmenter would be better."
    )
