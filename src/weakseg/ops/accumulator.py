"""Integer counts over images, and the scores they are turned into at the end.

Counts of several processes or threads are added with `merge`, or with `state` and `add_state` around an all-reduce; the
order never matters. Scores are fractions of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import MAX_CLASSES, judged_labels

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


class Accumulator:
    """Integer counts that are summed over images.

    `num_classes` labels, 0 … num_classes - 1, are told apart. Scores of classes have an entry for each of those that
    may be judged (`labels.judged_labels`): for all, if there are no more than 255.
    """

    def __init__(self, num_classes: int, **shapes: tuple[int, ...]) -> None:
        most = MAX_CLASSES + 3
        if not 2 <= num_classes <= most:
            raise WeaksegError(f"num_classes is {num_classes}; it counts the background too: 2 … {most}.")
        self.num_classes = num_classes
        self.judged = judged_labels(num_classes)
        self._counts = {name: np.zeros(shape, np.int64) for name, shape in {"images": (1,), **shapes}.items()}

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self._counts["images"][0])

    def state(self) -> dict[str, Counts]:
        """A copy of all counts: int64 arrays whose shapes depend on the settings alone."""
        return {name: counts.copy() for name, counts in self._counts.items()}

    def add_state(self, state: Mapping[str, Array]) -> None:
        """Add counts that `state` of an accumulator with the same settings returned.

        Raises `WeaksegError` where names or shapes differ; nothing is added then.
        """
        expected = {name: counts.shape for name, counts in self._counts.items()}
        found = {name: counts.shape for name, counts in state.items()}
        if found != expected:
            raise WeaksegError(f"Counts of another evaluation: they have the shapes {found}, expected {expected}.")
        for name, counts in self._counts.items():
            counts += state[name]

    def merge(self, other: Self) -> None:
        """Add the counts of other images; raises `WeaksegError` if they were counted with other settings."""
        if self._settings() != other._settings():
            raise WeaksegError(
                f"Evaluations with different settings cannot be added: {self._settings()} and {other._settings()}."
            )
        self.add_state(other._counts)

    def _settings(self) -> tuple[object, ...]:
        return type(self).__name__, self.num_classes

    def require_images(self) -> None:
        if self.images == 0:
            raise WeaksegError("No image was evaluated, so there is no score. Is the list of images empty?")


def ratio(numerator: Array, denominator: Array) -> Array:
    """Elementwise quotient, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def mean_of_numbers(values: Scores) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else math.nan


def as_json(values: Scores | float) -> Any:
    """Numbers as JSON takes them: None for NaN."""
    if isinstance(values, float):
        return None if math.isnan(values) else values
    return [as_json(value) for value in values.tolist()]
