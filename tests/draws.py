"""A random generator whose numbers are given."""

from __future__ import annotations

from collections.abc import Iterable


class Draws:
    """Gives stored numbers in turn, each of which must be possible. `left` are those to come, `bounds` the exclusive
    upper bounds of the integers that were asked for."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self.left, self.bounds = list(numbers), list[int]()

    def random(self) -> float:
        return self.left.pop(0)

    def integers(self, low: int, high: int | None = None, endpoint: bool = False) -> int:
        low, high = (0, low) if high is None else (low, high)
        self.bounds.append(high + endpoint)
        drawn = self.left.pop(0)
        assert drawn == int(drawn)
        assert low <= drawn < high + endpoint
        return int(drawn)
