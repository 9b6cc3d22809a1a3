"""Unaries of a dense CRF: each label's cost at each pixel, -ln p."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import VOID

FloatArray = npt.NDArray[np.float32]

SMALLEST_PROBABILITY = 1e-5


def unary_from_probabilities(probabilities: npt.NDArray[Any]) -> FloatArray:
    """U = -ln p, float32, in the shape of `probabilities` (L, …).

    p is bounded by `SMALLEST_PROBABILITY` from below and by 1 from above, as in the reference: maps of some methods
    reach past both. Nothing is renormalised. `weakseg.refine`, which takes anyone's scores, refuses numbers outside
    [0, 1]. Raises `WeaksegError` for NaN, and where no number is above 0, as of logarithms.
    """
    if np.isnan(probabilities).any():
        raise WeaksegError(f"The probabilities hold NaN, first at {first_index(np.isnan(probabilities))}.")
    if probabilities.size and probabilities.max() <= 0 and probabilities.min() < 0:
        raise WeaksegError(
            f"The probabilities reach from {probabilities.min():g} to {probabilities.max():g}, expected 0 to 1. Take "
            "the exponential of logarithms."
        )
    return np.ascontiguousarray(-np.log(probabilities.clip(SMALLEST_PROBABILITY, 1)), np.float32)


def unary_from_labels(labels: npt.NDArray[Any], n: int, certainty: float) -> FloatArray:
    """U (n, …), float32, of hard labels (…): -ln g for the label given, -ln((1 - g) / (n - 1)) for the others.

    Labels are 0 … n - 1. Void pixels (255) are uniform: -ln(1 / n). `certainty` is g, in (0, 1).

    Raises `WeaksegError` for other labels, with the position of the first.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise WeaksegError(f"Hard labels have to be whole numbers, not {labels.dtype}.")
    if n < 1:
        raise WeaksegError(f"A unary needs at least one label, not {n}.")
    if not 0 < certainty < 1:
        raise WeaksegError(f"The certainty of hard labels is {certainty}; it has to lie between 0 and 1.")
    void = labels == VOID
    unknown = ((labels < 0) | (labels >= n)) & ~void
    if unknown.any():
        raise WeaksegError(
            f"Label {labels[unknown][0]} at {first_index(unknown)} is none of the {n} labels: 0 to {n - 1} or "
            f"{VOID} (void)."
        )
    given, other = -math.log(certainty), -math.log((1 - certainty) / max(n - 1, 1))
    rows = np.arange(n).reshape(-1, *[1] * labels.ndim)
    unary = np.where(rows == labels, np.float32(given), np.float32(other))
    unary[:, void] = -math.log(1 / n)
    return unary


def first_index(mask: npt.NDArray[np.bool_]) -> str:
    """Where the first True of a mask is, for a message."""
    return f"index {tuple(int(index[0]) for index in np.nonzero(mask))}"
