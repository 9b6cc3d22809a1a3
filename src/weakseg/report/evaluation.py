"""Measure a folder of label maps, whoever made them, against the ground truth of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import reading
from weakseg.data.images import find_files, read_label_map
from weakseg.errors import WeaksegError
from weakseg.files import write_csv, write_json
from weakseg.labels import Classes
from weakseg.pipeline.measures import MaskScores, measure_masks
from weakseg.report.plots import confusion_matrix, iou_bars
from weakseg.report.tables import percent, text_table


def evaluate_folder(masks: Path, dataset: Dataset, split: str, out: Path) -> str:
    """Compare the label maps `masks`/NAME.png (0 background, 1 … C, 255 void) with the ground truth of a split.

    Writes `scores.json`, `images.csv` (IoU of every image, in percent), `confusion.png` and `per_class.png` to `out`
    and returns the scores as text. Raises `WeaksegError` for images without a mask on either side, for masks that are
    no label maps and for masks of another size than their ground truth.
    """
    scores, extra = score_folder(masks, dataset, split)
    values = scores.to_dict()
    names = ["background", *dataset.classes.names]
    write_json(out / "scores.json", {"masks": str(masks), "split": split, "classes": names, **values})
    _write_image_table(out / "images.csv", values["image_iou"])
    confusion_matrix(values["matrix"], names).save(out / "confusion.png")
    iou_bars({masks.name: values["iou"]}, names).save(out / "per_class.png")
    return "\n".join([scores_text(values, dataset.classes), *_remarks(values, extra)])


def score_folder(masks: Path, dataset: Dataset, split: str) -> tuple[MaskScores, list[str]]:
    """The scores of the label maps, and the names of those that belong to no image of the split."""
    samples = dataset.split(split)
    found = _find_masks(masks, samples, split)
    scores = measure_masks(
        samples, dataset.classes, lambda sample: read_label_map(found[sample.name]), "measuring", by_instances=True
    )
    return scores, sorted(found.keys() - {sample.name for sample in samples})


def scores_text(values: Mapping[str, Any], classes: Classes) -> str:
    """The scores of `MaskScores.to_dict` as a table: each class, then the means, in percent."""
    names = ["background", *classes.names]
    per_class = zip(names, values["iou"], values["boundary"]["f_score"], strict=True)
    rows = [[name, percent(iou), percent(boundary)] for name, iou, boundary in per_class]
    occurring = sum(iou is not None for iou in values["iou"])
    means = [
        [f"mean of all {len(names)} classes (absent: 0)", percent(values["mean_iou"])],
        [f"mean of the {occurring} classes that occur", percent(values["mean_iou_present"])],
        ["mean boundary F", percent(values["boundary"]["mean_f_score"])],
        ["pixel accuracy", percent(values["pixel_accuracy"])],
    ]
    if weighted := values.get("instance_weighted"):
        means.append(["mean of all classes, each image as often as its instances", percent(weighted["mean_iou"])])
    return "\n\n".join(
        [text_table(["class", "IoU %", "boundary F %"], rows), text_table([f"{values['images']} images", "%"], means)]
    )


def _find_masks(folder: Path, samples: Sequence[Sample], split: str) -> dict[str, Path]:
    """All label maps of the folder by name; every sample has one, and has ground truth."""
    if not folder.is_dir():
        raise WeaksegError(f"{folder} is not a folder of label maps.")
    if not samples:
        raise WeaksegError(f'The split "{split}" has no images.')
    untrue = [sample.name for sample in samples if sample.mask is None]
    if untrue:
        raise WeaksegError(
            f'{len(untrue)} of {len(samples)} images of the split "{split}" have no ground truth to compare with, '
            f"the first is {untrue[0]}. Choose another split, or add their masks to the data set."
        )
    with reading(folder, None) as report:
        found = find_files(folder, (".png",), report)
    missing = [sample.name for sample in samples if sample.name not in found]
    if missing:
        raise WeaksegError(
            f'{folder} has no label map for {len(missing)} of {len(samples)} images of the split "{split}", '
            f"the first is {missing[0]}.png. Predict them too, or choose another split."
        )
    return found


def _write_image_table(path: Path, image_iou: Mapping[str, float | None]) -> None:
    """CSV: the images and their IoU in percent, the worst first; empty where all ground truth is void."""
    by_iou = sorted(image_iou.items(), key=lambda item: (item[1] is None, item[1], item[0]))
    rows = ([name, None if iou is None else f"{100 * iou:.2f}"] for name, iou in by_iou)
    write_csv(path, ["image", "iou_percent"], rows)


def _remarks(values: Mapping[str, Any], extra: Sequence[str]) -> list[str]:
    """What a reader of the scores should know besides."""
    remarks, matrix = [], np.array(values["matrix"])
    if unlabelled := values["pixels_predicted_as_no_class"]:
        share = percent(unlabelled / values["pixels"])
        remarks.append(f"{share} % of the pixels are void or of no known class in the masks; they count as wrong.")
    if matrix[1:-1].any() and not matrix[:, 1:-1].any():
        remarks.append(
            "The masks show no class, only background or void (255). If 255 is the foreground, write it as 1."
        )
    if not matrix[1:].any():
        remarks.append(
            "The ground truth shows no class: all its pixels are background or void (255), so masks without any object "
            "score best. If 255 is the foreground, write it as 1."
        )
    if extra:
        remarks.append(f"{len(extra)} files belong to no image of the split and were left out, such as {extra[0]}.png.")
    return ["", *remarks] if remarks else []
