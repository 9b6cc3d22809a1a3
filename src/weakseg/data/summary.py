"""What a data set holds, in a few lines: what `data check` and every run begin with."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from weakseg.data.dataset import Dataset, Sample
from weakseg.labels import visible

WIDTH = 110
LISTED = 100
"""So many classes are listed."""
NO_BREAK = "\N{NO-BREAK SPACE}"

KINDS = ("tags", "boxes", "points", "scribbles", "masks", "corrected masks")


def kinds_of_labels(samples: Sequence[Sample]) -> Counter[str]:
    """How many images have each kind of label, of `KINDS`."""
    counts: Counter[str] = Counter()
    for sample in samples:
        labels = sample.labels
        counts["tags"] += labels.tags is not None
        counts["boxes"] += bool(labels.boxes)
        counts["points"] += bool(labels.points)
        counts["scribbles"] += bool(labels.scribbles)
        counts["masks"] += sample.mask is not None
        counts["corrected masks"] += sample.corrected is not None
    return +counts


def describe(
    dataset: Dataset, parts: Mapping[str, Sequence[Sample]] | None = None, uses: Mapping[str, str] | None = None
) -> list[str]:
    """The images of each part with the kinds of their labels, and the classes with the images that are labelled so;
    without these numbers where all labels are masks, which are not read for them.

    `parts` are the samples by the part that they play, the splits unless given. `uses` says what a recipe does with
    a kind of label, of `KINDS`; kinds that no image has are left out.
    """
    parts = dataset.splits if parts is None else parts
    lines = [f"{name}: {counted(len(samples), 'image')}{_with(samples)}" for name, samples in parts.items()]
    distinct = {sample.name: sample for samples in parts.values() for sample in samples}
    there = kinds_of_labels(list(distinct.values()))
    weak = [sample.labels for sample in distinct.values() if sample.labels.known]
    images = Counter(label for labels in weak for label in labels.present())
    # In their own order, but the most frequent ones where there are too many.
    kept = {label for label, _ in sorted(dataset.classes.numbered(), key=lambda of: -images[of[0]])[:LISTED]}
    listed = ", ".join(
        f"{visible(name)} {images[label] if weak else ''}".rstrip().replace(" ", NO_BREAK)
        for label, name in dataset.classes.numbered()
        if label in kept
    )
    if len(kept) < len(dataset.classes):
        listed += f", and {len(dataset.classes) - len(kept)} others"
    how = ", with labelled images" if weak else ", labelled in masks only" if there else ""
    lines.append(f"{counted(len(dataset.classes), 'class', 'classes')}{how}: {listed}")
    lines += [f"{kind}: {use}" for kind, use in (uses or {}).items() if there[kind]]
    wrapped = (part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="  "))
    return [part.replace(NO_BREAK, " ") for part in wrapped]


def _with(samples: Sequence[Sample]) -> str:
    counts = kinds_of_labels(samples)
    return " with " + ", ".join(f"{kind} ({counts[kind]})" for kind in KINDS if counts[kind]) if counts else ""


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number of things: "1 image", "2 images", "2 classes"."""
    return f"{count} {one if count == 1 else several or f'{one}s'}"
