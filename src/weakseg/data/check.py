"""Everything that is wrong with a data set, found before a training starts instead of hours into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weakseg.data.dataset import UNLABELLED, Dataset, Sample
from weakseg.data.findings import Report, Reported, reading
from weakseg.data.images import conversions, read_image
from weakseg.data.opening import open_dataset
from weakseg.data.summary import counted, describe
from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, VOID, Box, Classes, Point, Scribble, folded, tags_of, visible
from weakseg.threads import threaded

HELD_OUT = ("val", "test")
USUAL_SPLITS = ("train", "val", "test", UNLABELLED)
"""Splits that settings use, or that need none. Lists of VOC and files of COCO may have longer names."""

SUSPICIOUS = {"ignore", "ignored", "unlabeled", "unlabelled", "unknown", "none", "nothing", "undefined", "bg"}
"""Names, folded, that are hardly those of things."""

USUAL_LONG_SIDE = 352
"""Pixels: what most recipes scale larger photographs down to (`data.long_side`)."""

EXAMPLES = 5


def check_dataset(
    path: Path | str, format: str | None = None, on_image: Callable[[int, int], None] | None = None
) -> Report:
    """Read every image and every mask once and report all problems and notes, never raising for them.

    Problems: whatever the reader of the format finds, damaged or too large images and masks, masks of another
    size than their image or with unknown values, empty splits, training splits in which no image shows any class,
    images in both a training and a validation or test split. Notes: images that are converted when they are
    read, images without labels in a training split, images without a mask in a split where others have one, and what
    is likely not meant: classes of nearly the same name, classes without images, tags that masks or other labels
    contradict, splits that no setting uses.

    `on_image(done, total)` is called after each image. The report's `contents` are what `describe` says.
    """
    report = Report()
    try:
        dataset = open_dataset(path, format, report)
    except Reported:
        return report
    except WeaksegError as error:
        report.problem(str(error))
        return report
    _check_names(dataset.classes, report)
    _check_splits(dataset, report)
    _check_files(dataset, report, on_image or (lambda done, total: None))
    report.contents = describe(dataset)
    return report


def require_objects(samples: Sequence[Sample], split: str) -> None:
    """Raise `WeaksegError` where images have weak labels and none of them shows any class: nothing can be learned."""
    known = [sample for sample in samples if sample.labels.known]
    if known and not any(sample.labels.present() for sample in known):
        raise WeaksegError(
            f'None of the {len(known)} labelled images of the split "{split}" shows any class, so there is nothing to '
            "learn. Look at the label files: `weakseg data summary` counts what was read."
        )


def require_masks(samples: Iterable[Sample]) -> None:
    """Read every mask once. Raises `WeaksegError` with all that cannot be used, instead of hours into a run."""
    masked = [sample for sample in samples if sample.mask is not None]
    if masked:
        with reading(masked[0].image.parent, None) as report:
            for problem in threaded(_mask_problem, masked):
                if problem is not None:
                    report.problem(problem)


def _mask_problem(sample: Sample) -> str | None:
    try:
        assert sample.mask is not None
        sample.mask.read()
    except WeaksegError as error:
        return str(error)
    return None


# Classes


def _check_names(classes: Classes, report: Report) -> None:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes.names:
        alike[folded(name)].append(name)
        if folded(name) in SUSPICIOUS:
            report.note(
                f'The class "{name}" is hardly a thing. Pixels that nobody judges are 255 in masks, background is 0, '
                "and neither is a class."
            )
    for names in alike.values():
        if len(names) > 1:
            report.note(
                f"The classes {_listed(names)} differ in case, spaces, hyphens, underscores or invisible characters "
                "only. If they are the same, write them the same."
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{visible(name)}"' for name in names)


# Splits


def _check_splits(dataset: Dataset, report: Report) -> None:
    held_out = {
        sample.name: split
        for split, samples in dataset.splits.items()
        if split.startswith(HELD_OUT)
        for sample in samples
    }
    for split, samples in dataset.splits.items():
        if not samples:
            report.problem(f'The split "{split}" is empty.')
        usual = split in USUAL_SPLITS or (dataset.format != "folder" and split.startswith(USUAL_SPLITS))
        if len(dataset.splits) > 1 and not usual:
            images = counted(len(samples), "image")
            report.note(
                f'No setting uses the split "{split}" ({images}) by itself. If it is meant, say so with '
                f"--set data.train={split}; if not, look at the column of splits, where a tag may have slipped in."
            )
        # VOC's list "trainval" is the two together on purpose.
        if split.startswith("train") and "val" not in split:
            for sample in samples:
                if sample.name in held_out:
                    report.problem(
                        f'the image is in the splits "{split}" and "{held_out[sample.name]}". Remove it from one.',
                        sample.name,
                    )
        if split.startswith("train") and not report.faulty:
            try:
                require_objects(samples, split)
            except WeaksegError as error:
                report.problem(str(error))
        if not split.startswith(HELD_OUT) and not report.faulty:
            unlabelled = [sample.name for sample in samples if not sample.labels.known and sample.mask is None]
            _note(report, f'of the split "{split}" without any label', unlabelled)
        unmasked = [sample.name for sample in samples if sample.mask is None]
        if len(unmasked) < len(samples):
            _note(report, f'of the split "{split}" without a mask, which others have', unmasked)


def _note(report: Report, text: str, names: list[str]) -> None:
    if names:
        more = ", …" if len(names) > EXAMPLES else ""
        report.note(f"{counted(len(names), 'image')} {text}: {', '.join(names[:EXAMPLES])}{more}")


# Files


class _Finding(NamedTuple):
    """What was found in an image and its masks; `values` are those of each mask, as labels, `long_side` is the image's
    longer side, 0 where it cannot be read."""

    sample: Sample
    problems: list[str]
    conversions: list[str]
    values: list[frozenset[int]]
    long_side: int = 0


def _check_files(dataset: Dataset, report: Report, on_image: Callable[[int, int], None]) -> None:
    variants: dict[str, list[Sample]] = {}
    for samples in dataset.splits.values():
        for sample in samples:
            known = variants.setdefault(sample.name, [])
            if sample not in known:
                known.append(sample)

    converted: dict[str, list[str]] = defaultdict(list)
    large: list[str] = []
    meaning = _Meaning(dataset.classes, compare=dataset.format != "coco")  # whose labels and masks have one source
    for done, finding in enumerate(threaded(_check_image, variants.values()), 1):
        for problem in finding.problems:
            report.problem(problem)
        for kind in finding.conversions:
            converted[kind].append(finding.sample.name)
        if finding.sample.name not in report.faulty:
            meaning.add(finding)
        large += [finding.sample.name] if finding.long_side > 2 * USUAL_LONG_SIDE else []
        on_image(done, len(variants))
    _note(
        report, f"far larger than the {USUAL_LONG_SIDE} pixels that most recipes read them at (data.long_side)", large
    )
    for kind, names in sorted(converted.items()):
        _note(report, f"to be converted on reading ({kind})", names)
    meaning.tell(report)


def _check_image(variants: list[Sample]) -> _Finding:
    """The findings about one image, which several splits may list with different masks."""
    sample = variants[0]
    values: list[frozenset[int]] = []
    try:
        height, width = read_image(sample.image).shape[:2]
        kinds = conversions(sample.image)
    except WeaksegError as error:
        return _Finding(sample, [str(error)], [], values)
    problems = []
    for variant in variants:
        drawn = (("mask", variant.mask), ("context mask", variant.context), ("corrected mask", variant.corrected))
        for what, source in drawn:
            if source is None:
                continue
            try:
                labels = source.read()
                if labels.shape != (height, width):
                    problems.append(
                        f"{sample.image} has {height} × {width} pixels (height × width), "
                        f"but its {what} {labels.shape[0]} × {labels.shape[1]}. Their sizes must be equal."
                    )
                elif what == "mask":
                    values.append(frozenset(np.flatnonzero(np.bincount(labels.ravel())).tolist()))
            except WeaksegError as error:
                problems.append(str(error))
    return _Finding(sample, problems, kinds, values, max(height, width))


@dataclass
class _Meaning:
    """Gathers what labels and masks say, and tells where the two do not fit, if it is to `compare` them."""

    classes: Classes
    compare: bool
    labelled: int = 0
    masks: int = 0
    only_void: int = 0
    in_labels: set[int] = field(default_factory=set)
    in_masks: set[int] = field(default_factory=set)
    contradictions: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)

    def add(self, finding: _Finding) -> None:
        labels = finding.sample.labels
        self._compare_with_tags(finding.sample)
        self.labelled += labels.known
        self.in_labels |= labels.present()
        for values in finding.values:
            shown = tags_of(values)
            self.masks += 1
            self.only_void += not shown and VOID in values
            self.in_masks |= shown
            missing, untold = labels.present() - shown, shown - labels.present()
            if VOID in values and shown:  # under which an object may lie as a whole
                missing = frozenset()
            if self.compare and labels.tags is not None and (missing or untold):
                sides = (("labels", missing), ("mask", untold))
                only = (f"only in the {side}: {self._names(found)}" for side, found in sides if found)
                self.contradictions.append(f"{finding.sample.name}, {', '.join(only)}")

    def _compare_with_tags(self, sample: Sample) -> None:
        """Gather the boxes, points and scribbles of classes that the tags of their image leave out."""
        labels = sample.labels
        if labels.tags is None:
            return
        drawn: dict[str, tuple[Box | Point | Scribble, ...]] = {
            "box": labels.boxes, "point": labels.points, "scribble": labels.scribbles
        }  # fmt: skip
        for kind, items in drawn.items():
            if denied := {item.label for item in items} - labels.tags - {BACKGROUND}:
                self.denied.append(f"{sample.name}, {kind} of {self._names(denied)}")

    def _names(self, labels: Iterable[int]) -> str:
        return _listed(self.classes.name(label) for label in sorted(labels))

    def tell(self, report: Report) -> None:
        for where in self.denied:
            report.note(
                "the image's tags do not name this class. It is taken to be there; add the tag or remove the label.",
                where,
            )
        if self.only_void and not self.in_masks:
            report.note(
                "No mask shows any class: all pixels that are not 0 are 255, which is void. If they are the "
                "foreground, write it as 1."
            )
            return
        # What nothing shows may be in what has a problem.
        if self.in_masks and not report.problems:
            self._tell_missing(report, f"None of the {self.masks} masks shows", self.in_masks)
        if self.in_labels and not report.problems:
            self._tell_missing(report, f"None of the {self.labelled} labelled images shows", self.in_labels)
        for where in self.contradictions:
            report.note("labels and mask differ. Is the order of the classes that of the masks' values?", where)

    def _tell_missing(self, report: Report, start: str, found: set[int]) -> None:
        missing = [label for label in self.classes.labels if label not in found]
        if missing:
            noun = "the class" if len(missing) == 1 else f"the {len(missing)} classes"
            more = ", …" if len(missing) > EXAMPLES else ""
            report.note(f"{start} {noun} {self._names(missing[:EXAMPLES])}{more}.")
