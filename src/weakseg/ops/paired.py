"""Statistics of paired measurements: what a change does, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """`count` numbers: their mean, and their sample standard deviation (divisor count - 1; None for one number)."""

    count: int
    mean: float
    deviation: float | None

    def interval(self) -> tuple[float, float] | None:
        """The t interval of the mean, mean ± t · deviation / √count, with t of count - 1 degrees of freedom (Student
        1908). It takes the numbers as independent and normally distributed; None for one number."""
        if self.deviation is None:
            return None
        from scipy.special import stdtrit  # of 0.3 s to import, for one number

        half = float(stdtrit(self.count - 1, (1 + CONFIDENCE) / 2)) * self.deviation / math.sqrt(self.count)
        return self.mean - half, self.mean + half


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of at least one number."""
    if not values:
        raise ValueError("there is no mean of no numbers")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(len(values), float(np.mean(values)), deviation)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Spread | None:
    """The spread of `values - reference` over the keys (seeds) that both have; None if there is none.

    What a seed does to both sides alike (its images, its start) cancels, so this says more than two means do.
    """
    shared = [key for key in values if key in reference]
    return spread([values[key] - reference[key] for key in shared]) if shared else None
