"""Instances: from displacements to clusters of pixels, from clusters to masks, and files of them.

J. Ahn, S. Cho, S. Kwak, *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations*, CVPR 2019
(arXiv 1904.05044), section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from weakseg.errors import WeaksegError
from weakseg.files import read_npz, write_npz
from weakseg.labels import BACKGROUND, VOID
from weakseg.ops.compiled import compiled

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Instances:
    """The instances found, or drawn, in one image: `labels` int16 (R,) in 1 … C, `scores` float32 (R,) ≥ 0 and `masks`
    bool (R, H, W)."""

    labels: npt.NDArray[np.int16]
    scores: npt.NDArray[np.float32]
    masks: Masks

    def save(self, path: Path) -> None:
        """Write an `.npz` file with arrays of the same names atomically."""
        write_npz(path, {"labels": self.labels, "scores": self.scores, "masks": self.masks})

    @classmethod
    def load(cls, path: Path) -> Instances:
        """Read what `save` wrote; raises `WeaksegError` that says what is wrong with any other file."""
        arrays = read_npz(path)
        if fault := _fault(arrays):
            raise WeaksegError(f"{path} is no file of instances: {fault}. Delete it and run the stage again.")
        return cls(arrays["labels"], arrays["scores"], arrays["masks"])

    def numbered(self) -> npt.NDArray[np.uint8]:
        """A map (H, W) of the instances that have a score: 1, 2, … in their order, from 1 again after 254; 0 elsewhere.
        Of those that overlap the last is seen."""
        numbers = np.zeros(self.masks.shape[1:], np.uint8)
        for place, mask in enumerate(self.masks[self.scores > 0]):
            numbers[mask] = 1 + place % (VOID - 1)
        return numbers


def _fault(arrays: dict[str, npt.NDArray[Any]]) -> str | None:
    """What keeps named arrays from being instances; None where nothing does."""
    if set(arrays) != {"labels", "scores", "masks"}:
        return f"it holds {', '.join(sorted(arrays)) or 'nothing'}, expected labels, scores, masks"
    labels, scores, masks = arrays["labels"], arrays["scores"], arrays["masks"]
    if (labels.dtype, scores.dtype, masks.dtype) != (np.int16, np.float32, np.bool_):
        return f"labels are {labels.dtype}, scores {scores.dtype}, masks {masks.dtype}, expected int16, float32, bool"
    if labels.ndim != 1 or scores.shape != labels.shape or masks.ndim != 3 or len(masks) != len(labels):
        return f"labels have the shape {labels.shape}, scores {scores.shape}, masks {masks.shape}"
    if np.any(labels < 1) or np.any(labels == VOID) or not np.all(scores >= 0):
        return "labels are not all classes, or scores not all numbers ≥ 0"
    return None


def drawn_instances(objects: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Instances:
    """Ground truth from a map of objects (H, W), 0 none and 255 void, and the label map. The class of an object is that
    of most of its pixels; an object without any pixel of a class is left out."""
    found: list[int] = []
    masks: list[Masks] = []
    for number in np.unique(objects[(objects != 0) & (objects != VOID)]):
        mask = objects == number
        counts = np.bincount(labels[mask], minlength=VOID + 1)
        counts[[BACKGROUND, VOID]] = 0
        if counts.any():
            found.append(int(counts.argmax()))
            masks.append(mask)
    stacked = np.stack(masks) if masks else np.zeros((0, *objects.shape), bool)
    return Instances(np.array(found, np.int16), np.ones(len(found), np.float32), stacked)


# Centroids and clusters -----------------------------------------------------------------------------------------------


def centroids(field: npt.NDArray[np.float32], steps: int = 300) -> npt.NDArray[np.int32]:
    """Where each pixel comes to (2, h, w), (y, x), by following the displacements (2, h, w) so many times.

    A point takes the bilinearly interpolated displacement, and does not leave the map; in the end it is rounded.
    """
    _, height, width = field.shape
    points = np.indices((height, width), np.float32)
    _follow(np.ascontiguousarray(field, np.float32), points, steps)
    return np.rint(points).astype(np.int32)


@compiled()
def _follow(field: Any, points: Any, steps: int) -> None:
    """Move all points; positions are kept in float32, everything between is float64."""
    _, height, width = field.shape
    for i in range(height):
        for j in range(width):
            y, x = points[0, i, j], points[1, i, j]
            for _ in range(steps):
                top, left = int(np.floor(y)), int(np.floor(x))
                bottom, right = int(np.ceil(y)), int(np.ceil(x))
                down, across = np.float64(y) - top, np.float64(x) - left
                upper = field[:, top, left] * (1 - across) + field[:, top, right] * across
                lower = field[:, bottom, left] * (1 - across) + field[:, bottom, right] * across
                move = upper * (1 - down) + lower * down
                new_y = np.float32(min(max(y + move[0], 0.0), height - 1.0))
                new_x = np.float32(min(max(x + move[1], 0.0), width - 1.0))
                if new_y == y and new_x == x:
                    break
                y, x = new_y, new_x
            points[0, i, j], points[1, i, j] = y, x


def clusters(field: npt.NDArray[np.float32], ends: npt.NDArray[np.int32], still: float = 2.5) -> Masks:
    """The pixels that come to one place, as masks (I, h, w), none of them empty.

    Places are the 4-connected regions where displacements are shorter than `still`; all others count as one more.
    """
    regions, _ = ndimage.label(np.hypot(*field) < still)
    numbers = compressed(regions[ends[0], ends[1]])
    return np.arange(numbers.max() + 1)[:, None, None] == numbers


def compressed(numbers: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Distinct values replaced by 0, 1, 2, … in ascending order."""
    return np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape).astype(np.int32)


# Masks ----------------------------------------------------------------------------------------------------------------


def connected_instances(
    scores: Iterable[npt.NDArray[np.float32]],
    masks: Iterable[Masks],
    labels: Iterable[int],
    size: tuple[int, int],
    min_area: float,
) -> Instances:
    """The 4-connected parts of masks (H, W), each with the largest of the mask's scores (H, W) inside of it.

    Parts of less than `min_area` pixels stay in the list with the score 0.
    """
    found: list[tuple[int, float, Masks]] = []
    for values, mask, label in zip(scores, masks, labels, strict=True):
        parts, count = ndimage.label(mask)
        for part in range(1, count + 1):
            inside = parts == part
            found.append((label, float(values[inside].max()) if inside.sum() >= min_area else 0.0, inside))
    if not found:
        return Instances(np.zeros(0, np.int16), np.zeros(0, np.float32), np.zeros((0, *size), bool))
    classes, best, insides = zip(*found, strict=True)
    return Instances(np.array(classes, np.int16), np.array(best, np.float32), np.stack(insides))
