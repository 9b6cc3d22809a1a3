"""Partial label maps: labels where weak labels are sure of them, *unlabelled* elsewhere.

A partial label map (H, W): 0 background, 1 … C classes, 254 unlabelled, 255 void. An unlabelled pixel takes part in a
training, but has no label; a void one does not take part. With 254 classes, 254 is taken; with more it is free again
(`labels`).

Ke, Hwang, Yu, *Universal Weakly Supervised Segmentation by Pixel-to-Segment Contrastive Learning*, ICLR 2021,
section 4: the numbers. The rule for tags is that of SEAM's background score. The paper states the rule for boxes in
words; it is read as min-max normalisation inside of the box.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.labels import BACKGROUND, UNLABELLED, Box, label_array
from weakseg.ops.activation import ActivationMaps

LabelMap = npt.NDArray[Any]
"""uint8 or uint16."""
Size = tuple[int, int]
BoxScore = Callable[[Box], npt.NDArray[np.float32]]
"""The score (h, w) of each pixel inside of a box to be the box's class."""


def tag_labels(maps: ActivationMaps, tags: Collection[int], alpha: float = 6, threshold: float = 0.2) -> LabelMap:
    """Tags as a partial label map: the largest of the tags' maps and of the background's score (1 - max of them)^alpha.

    Pixels whose largest score is below `threshold` are unlabelled. Equal scores go to the smaller label. Without any
    tag all is background. Maps of other classes, and a background of the maps' own, are left out.
    """
    chosen = np.isin(maps.labels, sorted(tags))
    scores = maps.unsigned().upsampled()[chosen]
    background = (1 - scores.max(0, initial=0)) ** alpha
    scores = np.concatenate([background[None], scores])
    labels = label_array([BACKGROUND, *maps.labels[chosen]])[scores.argmax(0)]
    return np.where(scores.max(0) < threshold, np.uint8(UNLABELLED), labels)


def box_labels(boxes: Sequence[Box], size: Size, score: BoxScore, threshold: float) -> LabelMap:
    """Boxes as a partial label map (H, W): a pixel gets the class of the box with the largest score there.

    It is unlabelled if that score is below `threshold`, or if boxes of several classes share it. Outside of all boxes
    is background.
    """
    best = np.full(size, -np.inf, np.float32)
    result = np.full(size, BACKGROUND, label_array([box.label for box in boxes]).dtype)
    for box in boxes:
        place = np.s_[box.y0 : box.y1, box.x0 : box.x1]
        of_box, before, labels = score(box), best[place], result[place]
        labels[(of_box == before) & (labels != box.label)] = UNLABELLED
        labels[of_box > before] = box.label
        before[:] = np.maximum(before, of_box)
    result[np.isfinite(best) & (best < threshold)] = UNLABELLED
    return result


def activation_in_box(maps: ActivationMaps) -> BoxScore:
    """The map of a box's class from 0 at its minimum inside of the box to 1 at its maximum there; 1 where it is
    constant."""
    whole = dict(zip(maps.labels.tolist(), maps.unsigned().upsampled(), strict=True))

    def score(box: Box) -> npt.NDArray[np.float32]:
        inside = whole[box.label][box.y0 : box.y1, box.x0 : box.x1]
        low, high = inside.min(), inside.max()
        return (inside - low) / (high - low) if high > low else np.ones_like(inside)

    return score


def smallest_box(box: Box) -> npt.NDArray[np.float32]:
    """A score without any map: boxes are filled, the smaller ones over the larger."""
    height, width = box.y1 - box.y0, box.x1 - box.x0
    return np.full((height, width), 1 / (height * width), np.float32)


def most_precise(layers: Sequence[LabelMap], size: Size) -> LabelMap:
    """One map (H, W) of several: each pixel has the label of the first of them in which it is not unlabelled."""
    unlabelled = np.full(size, UNLABELLED, np.uint8)
    return reduce(lambda above, below: np.where(above == UNLABELLED, below, above), layers, unlabelled)
