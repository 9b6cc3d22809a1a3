"""How far the pseudo-masks can be trusted, the worst first: a part of the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from weakseg.files import read_json
from weakseg.labels import Classes
from weakseg.ops.trust import rank_correlation
from weakseg.pipeline.trust import TRUST_NAME
from weakseg.report.markup import Markup, Share, element, table
from weakseg.report.tables import percent

if TYPE_CHECKING:
    from weakseg.report.folder import RunFolder

IMAGES_SHOWN = 20
"""So many images, the worst, are in the table."""

OfClass = Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """An image with the trust in it, and that in each of its classes (label → fit, contrast, covered, trust)."""

    name: str
    trust: float
    classes: Mapping[int, OfClass]

    @property
    def worst(self) -> int:
        """The label of the class that is trusted least."""
        return min(self.classes, key=lambda label: (self.classes[label]["trust"], label))


def judged(run: RunFolder, stage: str) -> list[Judged]:
    """The images of a stage of masks, the least trusted first; images without classes and runs that do not tell give
    none."""
    path = run.root / stage / TRUST_NAME
    if not path.is_file():
        return []
    found = [
        Judged(name, of_image["trust"], {int(label): of_class for label, of_class in of_image["classes"].items()})
        for name, of_image in read_json(path).items()
        if of_image["classes"]
    ]
    return sorted(found, key=lambda image: (image.trust, image.name))


def trust_part(run: RunFolder, stage: str) -> Iterator[Markup]:
    """The classes and the images of a stage of masks, the least trusted first."""
    images = judged(run, stage)
    if not images:
        return
    title = run.titles("masks").get(stage, stage)
    explanation = (
        "Trust needs no ground truth. In a class: fit (IoU of the map above its background and the mask after the CRF) "
        "times contrast (the share of the map's variance between the mask and its surroundings). In an image: the mean "
        "activation inside of the mask, the lower the more classes there are. It ranks masks; it does not estimate "
        "their IoU."
    )
    yield element("h3", title)
    yield element("p", f"{explanation} {_against_truth(run, title, images)}", class_="explanation")
    yield table(*_class_cells(images, Classes(run.data["classes"])), "Classes, the least trusted first, in percent")
    caption = f"The {min(len(images), IMAGES_SHOWN)} least trusted of {len(images)} images, in percent"
    yield table(*_image_cells(images[:IMAGES_SHOWN], Classes(run.data["classes"])), caption, texts=2)


def _against_truth(run: RunFolder, title: str, images: Sequence[Judged]) -> str:
    """How well the trust ranks the images, where their masks were measured."""
    iou = run.image_iou(title, "score")
    pairs = [(image.trust, known) for image in images if (known := iou.get(image.name)) is not None]
    correlation = rank_correlation(*zip(*pairs, strict=True)) if pairs else None
    if correlation is None:
        return ""
    return f"Over {len(pairs)} images with ground truth, its rank correlation with their IoU is {correlation:.2f}."


def _class_cells(images: Sequence[Judged], classes: Classes) -> tuple[list[str], list[list[str]]]:
    found: dict[int, list[OfClass]] = {}
    for image in images:
        for label, of_class in image.classes.items():
            found.setdefault(label, []).append(of_class)
    means = {label: _means(of_images) for label, of_images in found.items()}
    rows = [
        [classes.name(label), *_numbers(means[label]), str(len(found[label]))]
        for label in sorted(means, key=lambda label: (means[label]["trust"], label))
    ]
    return ["class", *COLUMNS, "images"], rows


def _image_cells(images: Sequence[Judged], classes: Classes) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            image.name,
            classes.name(image.worst),
            Share(percent(image.trust), image.trust),
            percent(sum(of_class["covered"] for of_class in image.classes.values())),
            str(len(image.classes)),
        ]
        for image in images
    ]
    return ["image", "weakest class", "trust", "share covered", "classes"], rows


COLUMNS = {"trust": "trust", "fit": "fit", "contrast": "contrast", "share covered": "covered"}


def _means(values: Sequence[OfClass]) -> dict[str, Any]:
    return {key: float(np.mean([of_class[key] for of_class in values])) for key in COLUMNS.values()}


def _numbers(means: Mapping[str, float]) -> list[str]:
    """The cells of one row."""
    trust = means["trust"]
    return [Share(percent(trust), trust), *(percent(means[key]) for key in list(COLUMNS.values())[1:])]
