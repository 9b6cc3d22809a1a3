"""Runs: a folder in which each stage of a recipe owns one sub-folder with its artifact and a manifest.

A stage is skipped if its manifest's key equals the key of what would be done now. The key is a hash of the stage's
settings, the keys of the stages it reads, and the part of the data that it uses; so a change re-runs just what depends
on it. A stage with the same key in another run has the same artifact, which can be taken over from there.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from weakseg import files, parallel
from weakseg.data import corrections
from weakseg.data.check import require_masks, require_objects
from weakseg.data.cooccurrence import images_with_both
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.loading import balanced_subset
from weakseg.data.summary import describe
from weakseg.data.working_size import at_working_size
from weakseg.errors import Stopped, WeaksegError
from weakseg.files import TEMPORARY_SUFFIX, atomic_path, drop_partial_line, read_json, write_json, write_text
from weakseg.labels import visible
from weakseg.pipeline.context import LOG_NAME, Context, require_labels, write_log
from weakseg.pipeline.edits import MASKS_FOLDER, edited_masks, written_masks
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.recipe import DataSettings, Recipe, needed_for
from weakseg.pipeline.recipe_files import read_yaml
from weakseg.pipeline.stage import Stage
from weakseg.pipeline.stages.partial import Partial
from weakseg.pipeline.stages.segment import Segment
from weakseg.runtime import start
from weakseg.training import CHECKPOINT_NAME
from weakseg.version import __version__

FORMAT = 2
"""Of manifests: what the keys of stages are made of."""
MANIFEST_NAME = "manifest.json"
PENDING_NAME = "pending.json"
RECIPE_NAME = "recipe.yaml"
DATA_NAME = "data.json"
LOCK_NAME = "run.lock"
NAMES_SHOWN = 5
"""So many images are named in a message."""


def run(
    recipe: Recipe,
    dataset: Dataset,
    root: Path,
    announce: Callable[[str], None] = print,
    *,
    reuse: Sequence[Path] = (),
    redo: Sequence[str] = (),
    until: str | None = None,
) -> None:
    """Carry out a recipe in the folder `root`; finished stages are skipped.

    `reuse` are folders of other runs: a stage that one of them has finished with the same key is taken over from there
    instead of being done again. `redo` are stages to do again although they are finished; `until` is a stage besides
    which only those that it needs are carried out. Under `torchrun`, every process calls this with the same arguments.
    `announce` gets one line for each stage.

    Raises `WeaksegError` for settings and data that make no sense, before anything is written, and `Stopped` after
    Ctrl-C.
    """
    for name in redo:
        if name not in recipe.stages:
            raise WeaksegError(f'There is no stage "{name}" to do again. There are: {", ".join(recipe.stages)}.')
    wanted = set(recipe.stages) if until is None else needed_for(recipe, until)
    fabric = start(recipe.runtime)
    with locked(root), parallel.leaving_at_exit():
        context = Context(
            recipe.stages,
            dataset,
            recipe.seed,
            recipe.runtime,
            fabric,
            root,
            *parts(dataset, recipe),
            working_size(recipe),
        )
        if not context.train:
            raise WeaksegError(f'The split "{recipe.data.train}" has no images.')
        if recipe.data.images_per_class is not None or any(s.reads_weak_labels() for s in recipe.stages.values()):
            require_labels(context.train, recipe.data.train)
            require_labels(context.weakly_labelled(), _split_names(recipe.data)["score"] or recipe.data.train)
            require_objects(context.train, recipe.data.train)
        keys = stage_keys(context)
        _require_readable(root, recipe)
        done = [name for name, key in keys.items() if name not in redo and _is_done(context.folder(name), key)]
        elsewhere = _finished_elsewhere(reuse, root)
        taken = {name: elsewhere[key] for name, key in keys.items() if name not in (*done, *redo) and key in elsewhere}
        _require_unedited([name for name in wanted if name not in (*done, *redo)], context)
        to_do = [name for name in recipe.stages if name in wanted and name not in done and name not in taken]
        if to_do:
            require_masks([*context.score, *context.val])
        for name in to_do:
            recipe.stages[name].prepare(context)
        if parallel.rank() == 0:
            clear_temporaries(root.glob)
            drop_partial_line(root / LOG_NAME)
            write_text(root / RECIPE_NAME, recipe.as_yaml())
            write_json(root / DATA_NAME, _summary(context, recipe))
        write_log(root, "run", recipe=recipe.name, processes=parallel.world_size(), weakseg=__version__, keys=keys)
        parallel.barrier()  # everyone has read the manifests that are cleared away next
        for name, stage in recipe.stages.items():
            if name not in wanted:
                continue
            if name in done:
                if parallel.rank() == 0:
                    _describe_anew(name, stage, context)
                    announce(f"{name}: finished before, skipped")
                    _tell_edits(name, context, announce)
            elif name in taken and _take_over(name, stage, keys[name], taken[name], context):
                if parallel.rank() == 0:
                    announce(f"{name}: taken from {taken[name]}")
                    _tell_edits(name, context, announce)
            else:
                _run_stage(name, stage, keys[name], context, announce, again=name in redo)
        write_log(root, "done")


def finished(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage, or None."""
    path = folder / MANIFEST_NAME
    return read_json(path) if path.is_file() else None


def recipe_of(root: Path) -> dict[str, Any]:
    """The recipe of a run as its file tells it, not as today's settings, so that runs of old versions can be read.

    Raises `WeaksegError` for a folder that is not a run's.
    """
    path = root / RECIPE_NAME
    if not path.is_file():
        raise WeaksegError(f"{root} is not the folder of a run: it has no {RECIPE_NAME}.")
    recipe = read_yaml(path)
    if not isinstance(recipe.get("stages"), dict):
        raise WeaksegError(f"{path} is not the recipe of a run: it has no stages.")
    return recipe


def _require_readable(root: Path, recipe: Recipe) -> None:
    """Raise `WeaksegError` for the run of an earlier version, whose keys say something else."""
    for name in recipe.stages:
        manifest = finished(root / name)
        if manifest is not None and manifest.get("format", 1) < FORMAT:
            raise WeaksegError(
                f"{root} was made by an earlier version of weakseg and cannot be continued by this one. Its report and "
                "its models can still be used; choose another --out folder for a new run."
            )


def _is_done(folder: Path, key: str) -> bool:
    """Whether the stage of this folder was finished with this key."""
    manifest = finished(folder)
    return manifest is not None and manifest["key"] == key


def _edits(name: str, context: Context) -> tuple[str, str] | None:
    """The masks of a stage that were changed by hand and are not in the data set's folder `corrected`, in words, and
    what to do with them; None where there are none."""
    corrected = {sample.name for sample in context.train if sample.corrected is not None}
    manifest = finished(context.folder(name)) or {}
    edited = [
        image for image in edited_masks(context.folder(name), manifest.get("masks", {})) if image not in corrected
    ]
    if not edited:
        return None
    more = ", …" if len(edited) > NAMES_SHOWN else ""
    found = f"{len(edited)} of its masks were changed by hand ({', '.join(edited[:NAMES_SHOWN])}{more})"
    masks, target = context.folder(name) / MASKS_FOLDER, context.dataset.folder / corrections.FOLDER
    return found, f"Copy them from {masks} to {target}; the segmenter then learns from them"


def _require_unedited(names: Sequence[str], context: Context) -> None:
    """Raise `WeaksegError` where the work of a person would be cleared away by stages that are to be carried out."""
    for name in names:
        if (edits := _edits(name, context)) is not None:
            found, advice = edits
            raise WeaksegError(
                f"{name} has to run again, but {found}, which would be lost. {advice}. To do without: --redo {name}."
            )


def _tell_edits(name: str, context: Context, announce: Callable[[str], None]) -> None:
    if (edits := _edits(name, context)) is not None:
        found, advice = edits
        announce(f"{name}: {found}, which changes nothing. {advice}.")


def stage_keys(context: Context) -> dict[str, str]:
    """The key of every stage. The names of the stages that it reads stand for their keys: they may be called anything,
    and so may the stage itself."""
    keys: dict[str, str] = {}
    for name, stage in context.stages.items():
        described = [
            stage.reading(keys).settings_of_artifact(),
            stage.versions(),
            context.dataset.classes.names,
            stage.dependencies(context),
        ]
        keys[name] = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return keys


def _described(name: str, stage: Stage) -> dict[str, Any]:
    """What a manifest says of the stage itself, rather than of how it was carried out."""
    return {"stage": name, "settings": stage.model_dump(mode="json"), "inputs": stage.inputs_of()}


def _describe_anew(name: str, stage: Stage, context: Context) -> None:
    """Let a finished stage tell the settings of today, where they differ in what its artifact does not depend on."""
    folder = context.folder(name)
    stage.describe(context, folder)
    old = read_json(folder / MANIFEST_NAME)
    new = {**old, **_described(name, stage)}
    if new != old:
        write_json(folder / MANIFEST_NAME, new)


def _run_stage(
    name: str, stage: Stage, key: str, context: Context, announce: Callable[[str], None], *, again: bool
) -> None:
    folder = context.folder(name)
    resumed = False
    if parallel.rank() == 0:
        announce(f"{name}: running")
        if again and finished(folder):
            _clear(folder)
        resumed = _prepare(folder, key)
    parallel.barrier()
    write_log(context.root, "stage", stage=name, key=key)
    begun = time.time()
    try:
        stage.run(context, folder)
    except KeyboardInterrupt:
        write_log(context.root, "stopped", stage=name)
        raise Stopped(
            f'Stopped in the stage "{name}". What is done is kept; the same command goes on from there.'
        ) from None
    parallel.barrier()
    if parallel.rank() == 0:
        stage.describe(context, folder)
        write_json(
            folder / MANIFEST_NAME,
            {
                "format": FORMAT,
                **_described(name, stage),
                "key": key,
                "versions_of_methods": stage.versions(),
                "seconds": round(time.time() - begun, 2),
                "resumed": resumed,
                "processes": parallel.world_size(),
                "device": context.fabric.device.type,
                "versions": versions(),
                **({"masks": written_masks(folder)} if stage.leaves == "masks" else {}),
            },
        )
        (folder / PENDING_NAME).unlink()
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    write_log(context.root, "stage done", stage=name, seconds=round(time.time() - begun, 2))


def _finished_elsewhere(runs: Sequence[Path], root: Path) -> dict[str, Path]:
    """Key → folder of every stage that other runs have finished; the same for all processes."""
    found: dict[str, Path] = {}
    if parallel.rank() == 0:
        for other in runs:
            stages = recipe_of(other)["stages"]
            if other.resolve() != root.resolve():
                for name in stages:
                    if (manifest := finished(other / name)) is not None:
                        found.setdefault(manifest["key"], other / name)
    return parallel.gather(found)[0]


def _take_over(name: str, stage: Stage, key: str, source: Path, context: Context) -> bool:
    """Make the finished stage in `source` one of this run; False if it was cleared away meanwhile."""
    whole = False
    if parallel.rank() == 0:
        folder = context.folder(name)
        _clear(folder)
        # Another run may clear its folder at any time: only what is still finished afterwards was whole.
        manifest = finished(source)
        whole = _link_files(source, folder) and _is_done(source, key)
        if whole and manifest is not None:
            stage.describe(context, folder)
            reused = {"reused_from": str(source.resolve())}
            write_json(folder / MANIFEST_NAME, {**manifest, **_described(name, stage), **reused})
            (folder / PENDING_NAME).unlink()
            write_log(context.root, "stage done", stage=name, seconds=manifest["seconds"], reused_from=str(source))
    return parallel.gather(whole)[0]


def _link_files(source: Path, folder: Path) -> bool:
    """Hard links to the files of an artifact, copies where the file system has none; False if one vanished.

    Files of a run are replaced, never changed, so that a link is as good as a copy.
    """
    passing = {MANIFEST_NAME, PENDING_NAME, CHECKPOINT_NAME}
    try:
        for path in source.rglob("*"):
            if path.is_file() and path.name not in passing and not path.name.endswith(TEMPORARY_SUFFIX):
                target = folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)
    except FileNotFoundError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _prepare(folder: Path, key: str) -> bool:
    """Keep what an interrupted run of the very same stage left (True); clear away anything else (False)."""
    pending = folder / PENDING_NAME
    if pending.is_file() and read_json(pending)["key"] == key:
        clear_temporaries(folder.rglob)
        return True
    _clear(folder)
    write_json(pending, {"key": key})
    return False


def _clear(folder: Path) -> None:
    """Take away what was made with another key. What is left if this is killed is known to be worth nothing."""
    pending, manifest = folder / PENDING_NAME, folder / MANIFEST_NAME
    if folder.exists() and not (pending.is_file() or manifest.is_file()) and any(folder.iterdir()):
        raise WeaksegError(f"{folder} holds files that no run has written; choose another --out folder.")
    write_json(pending, {"key": None})
    manifest.unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != pending:
            path.unlink()


def clear_temporaries(find: Callable[[str], Iterable[Path]]) -> None:
    """Delete what a killed process was about to write."""
    for leftover in find(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink()


@contextmanager
def locked(root: Path, name: str = LOCK_NAME, what: str = "run") -> Iterator[None]:
    """Hold the lock of a folder, for all processes of a job; a second run on the same folder is refused."""
    with nullcontext() if parallel.rank() else files.locked(root / name, what, wait=False):
        yield


def _split_names(settings: DataSettings) -> dict[str, str | None]:
    """The split of the data set that plays each part."""
    return {
        "train": settings.train,
        "score": settings.train if settings.score == "auto" else settings.score,
        "val": "val" if settings.val == "auto" else settings.val,
    }


def parts(dataset: Dataset, recipe: Recipe) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """The samples of train, score and val, at the working size."""
    settings = recipe.data
    train: Sequence[Sample] = dataset.split(settings.train)
    if settings.images_per_class is not None:
        train = balanced_subset(train, settings.images_per_class, recipe.seed)
    score: Sequence[Sample] = []
    if settings.score == "auto":
        score = [sample for sample in train if sample.mask is not None]
    elif settings.score is not None:
        score = _with_masks(dataset, settings.score)
    val: Sequence[Sample] = []
    if settings.val == "auto":
        val = [sample for sample in dataset.splits.get("val", ()) if sample.mask is not None]
    elif settings.val is not None:
        val = _with_masks(dataset, settings.val)
    if not settings.difficult:
        train, score = ([_without_difficult(sample) for sample in samples] for samples in (train, score))
    train, score, val = (at_working_size(samples, working_size(recipe)) for samples in (train, score, val))
    return train, score, val


def working_size(recipe: Recipe) -> int | None:
    """The longer side, in pixels, that larger photographs are worked on at; None: they stay as they are."""
    if recipe.data.long_side != "auto":
        return recipe.data.long_side
    learning = [
        stage for stage in recipe.stages.values() if isinstance(stage, Learning) and stage.leaves == "localiser"
    ]
    return max((stage.augment.resize_long[1] for stage in learning if stage.augment.resize_long), default=None)


def _without_difficult(sample: Sample) -> Sample:
    return replace(sample, labels=sample.labels.without_difficult())


def _with_masks(dataset: Dataset, split: str) -> Sequence[Sample]:
    samples = dataset.split(split)
    without = [sample.name for sample in samples if sample.mask is None]
    if without:
        raise WeaksegError(
            f'{len(without)} images of the split "{split}" have no mask to measure against, the first is {without[0]}.'
        )
    return samples


def description(recipe: Recipe, dataset: Dataset) -> list[str]:
    """What the data hold for each part of a run, and what the recipe does with each kind of label, in a few lines."""
    samples = dict(zip(("train", "score", "val"), parts(dataset, recipe), strict=True))
    scaled = {sample.name for of_part in samples.values() for sample in of_part if sample.long_side}
    held = describe(dataset, {part: found for part, found in samples.items() if found}, uses_of_labels(recipe))
    if unused := _unused(dataset, samples.values()):
        held.append(f"images not used, by split: {', '.join(unused)}")
    if scaled:
        held.append(f"photographs read at {working_size(recipe)} pixels, since they are larger: {len(scaled)}")
    return [*held, *(f"note: {note}" for note in dataset.notes)]


def _unused(dataset: Dataset, parts: Iterable[Sequence[Sample]]) -> list[str]:
    """The splits with images that play no part, which may be due to a slip in a label file, and how many these are."""
    used = {sample.name for samples in parts for sample in samples}
    left = {
        split: sum(sample.name not in used for sample in samples) for split, samples in sorted(dataset.splits.items())
    }
    return [f"{visible(split)} {count}" for split, count in left.items() if count]


def uses_of_labels(recipe: Recipe) -> dict[str, str]:
    """What a recipe does with each kind of label (`data.summary.KINDS`)."""
    read: dict[str, list[str]] = {"tags": [], "marks": [], "labels": []}
    for name, stage in recipe.stages.items():
        if isinstance(stage, Learning):
            fields = set(stage.method_class().fields) - set(stage.inputs)
            for field, stages in read.items():
                if field in fields and (field != "labels" or getattr(stage, "masks", "") is None):
                    stages.append(name)
    tags = f"{', '.join(read['tags'])}: learned from" if read["tags"] else "they say which classes are present"
    marks = f"{', '.join(read['marks'])}: learned from" if read["marks"] else "only their classes count, as tags do"
    read["labels"] += [name for name, stage in recipe.stages.items() if _learns_from_masks(stage)]
    masks = (
        f"{', '.join(read['labels'])}: learned from; results are measured on them"
        if read["labels"]
        else ("results are measured on them, and thresholds chosen where they are not given")
    )
    correcting = [name for name, stage in recipe.stages.items() if _learns_from_corrections(stage)]
    corrected = f"{', '.join(correcting)}: learned from, in place of pseudo-masks" if correcting else "not used"
    uses = {"tags": tags, "boxes": "only their classes count, as tags do", "points": marks, "scribbles": marks,
            "masks": masks, "corrected masks": corrected}  # fmt: skip
    for name, stage in recipe.stages.items():
        if isinstance(stage, Partial):
            uses |= dict.fromkeys(stage.kinds, f"{name}: they label pixels")
    return uses


def _learns_from_corrections(stage: Stage) -> bool:
    return isinstance(stage, Segment) and stage.learns_from_corrections()


def _learns_from_masks(stage: Stage) -> bool:
    return isinstance(stage, Segment) and stage.learns_from_masks()


def _summary(context: Context, recipe: Recipe) -> dict[str, Any]:
    """What the report says of the data."""
    classes = context.dataset.classes
    parts = {"train": context.train, "score": context.score, "val": context.val}
    return {
        "root": str(context.dataset.root.resolve()),
        "format": context.dataset.format,
        "classes": list(classes.names),
        "splits": _split_names(recipe.data),
        "images": {part: len(samples) for part, samples in parts.items()},
        "images_with_class": {
            part: images_with_both(samples, classes.largest).diagonal().tolist() for part, samples in parts.items()
        },
        "images_with_both": images_with_both(context.train, classes.largest).tolist(),
        "names": {part: [sample.name for sample in samples] for part, samples in parts.items()},
        "long_side": context.long_side,
        "corrected": [sample.name for sample in context.train if sample.corrected is not None],
        "true_masks": [sample.name for sample in context.train if sample.mask is not None and sample.corrected is None],
    }


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    packages = ("torch", "lightning-fabric", "numpy", "numba", "pillow")
    return {
        "weakseg": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{package: version(package) for package in packages},
    }
