"""Label maps to be compared: integers (H, W), 0 background, 255 void. Errors name the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import VOID, VOID_OF_16_BITS, label_array

Array = npt.NDArray[Any]
Labels = npt.NDArray[Any]
"""(H, W), uint8 or uint16."""


def checked_pair(truth: Array, prediction: Array, name: str) -> tuple[Labels, Labels]:
    """Ground truth and prediction of one image, checked."""
    truth = checked_label_map(truth, "ground truth", name)
    prediction = checked_label_map(prediction, "prediction", name)
    require_same_size(truth, prediction.shape, "prediction", name)
    return truth, prediction


def checked_label_map(labels: Array, what: str, name: str) -> Labels:
    """A checked label map (H, W); negative labels become void."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        colour = " It looks like a colour image: read palette PNGs as indices." if labels.ndim == 3 else ""
        raise WeaksegError(f"{name}: the {what} has shape {labels.shape}; expected a label map (H, W).{colour}")
    if labels.dtype.kind not in "iu":
        raise WeaksegError(f"{name}: the {what} is of type {labels.dtype}; expected labels as whole numbers (uint8).")
    if labels.dtype in (np.uint8, np.uint16):
        return labels
    if labels.max() >= VOID_OF_16_BITS:
        raise WeaksegError(
            f"{name}: the {what} holds the label {labels.max()}; labels are below {VOID_OF_16_BITS}, and 255 is void."
        )
    return label_array(np.where(labels < 0, VOID, labels))


def require_same_size(truth: Labels, size: tuple[int, ...], what: str, name: str) -> None:
    if truth.shape != size:
        raise WeaksegError(
            f"{name}: the size of the {what} is {size[1]} × {size[0]}, that of the ground truth {truth.shape[1]} × "
            f"{truth.shape[0]} pixels (width × height). Both must come from the same image, without resizing."
        )
