"""Learning rates over time."""

from __future__ import annotations


def poly_factor(step: int, steps: int, power: float, every: int = 1) -> float:
    """What the initial learning rate is multiplied with in update `step` (0 … steps - 1) of `steps`.

    (1 - k / steps)^power, where k is `step` rounded down to a multiple of `every` (Chen et al. 2018, section 4.1.1;
    arXiv 1606.00915, with `every` = 10). From update `steps` on it stays at the value of the last one: a
    method that trains longer than its schedule goes on slowly instead of standing still.
    """
    step = min(step, steps - 1)
    return (1 - (step - step % every) / steps) ** power
