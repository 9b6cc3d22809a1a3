"""The loss that segmenters share: cross entropy with label maps."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.ops.resize import resize_labels, resize_labels_by_majority

Place = Literal["output", "majority", "image"]
"""Where scores and labels meet: at the size of the scores, where a cell has the nearest pixel's label or, as in ICD's
program, that of the majority around its place (void without one); or at the size of the labels."""


def cross_entropy(scores: Tensor, labels: Tensor, place: Place, *, align_corners: bool = False) -> Tensor:
    """Cross entropy of scores (N, 1 + C, h, w) with labels (N, H, W), summed over the pixels that have a label
    (`labelled_pixels`). `align_corners` says how scores come to the size of the labels.

    Raises `WeaksegError` for labels that are neither 0 … C nor void.
    """
    _check(labels, scores.shape[1] - 1)
    if place == "image":
        scores = F.interpolate(scores, labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    labels = _at(labels, (scores.shape[-2], scores.shape[-1]), place)
    return F.cross_entropy(scores.float(), labels.long(), ignore_index=VOID, reduction="sum")


def labelled_pixels(labels: Tensor, size: tuple[int, ...], place: Place) -> Tensor:
    """How many pixels `cross_entropy` is summed over, for labels (N, H, W) and scores of a size (h, w)."""
    return (_at(labels, (size[0], size[1]), place) != VOID).sum()


def _at(labels: Tensor, size: tuple[int, int], place: Place) -> Tensor:
    """The labels where they meet scores of a size (h, w)."""
    if place == "image":
        return labels
    return resize_labels(labels, size) if place == "output" else resize_labels_by_majority(labels, size)


def _check(labels: Tensor, num_classes: int) -> None:
    wrong = labels[(labels > num_classes) & (labels != VOID)]
    if wrong.numel():
        raise WeaksegError(
            f"A label map holds {', '.join(map(str, wrong.unique().tolist()))}, but the segmenter has the labels "
            f"0 … {num_classes} and {VOID} (void). Were the masks made for another list of classes?"
        )
