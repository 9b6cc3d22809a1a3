"""Prototypes with what decides whether they are the same, and a memory of those of earlier updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weakseg import parallel


class Prototypes(NamedTuple):
    """S segments: unit `vectors` (S, D), `labels` int64 (S,), the `tags` of their images (S, C) and the label `sets`
    that they have by similarity (S, 1 + C or, if nothing reads them, 0), both as truth values."""

    vectors: Tensor
    labels: Tensor
    tags: Tensor
    sets: Tensor

    def of_all_processes(self) -> tuple[Prototypes, int]:
        """Those of all processes, which learn from them all, and the number of the first of this process."""
        counts = parallel.gather(len(self.vectors))
        gathered = Prototypes(*(parallel.gather_rows(rows, counts) for rows in self))
        return gathered, sum(counts[: parallel.rank()])


def joined(parts: Sequence[Prototypes]) -> Prototypes:
    """All prototypes of the parts, in their order."""
    return Prototypes(*(torch.cat(rows) for rows in zip(*parts, strict=True)))


class Memory:
    """The prototypes of the last `size` updates, the newest last. Nothing learns through them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[Prototypes] = []
        self._seen: list[Prototypes] = []

    def note(self, prototypes: Prototypes) -> None:
        """Remember prototypes of all processes when the update is over."""
        if self.size:
            self._seen.append(Prototypes(*(rows.detach() for rows in prototypes)))

    def end_update(self) -> None:
        """Append what was noted, one or more micro-batches, and forget the oldest."""
        if self._seen:
            self.entries = [*self.entries, joined(self._seen)][-self.size :]
        self._seen = []

    def state(self) -> dict[str, Tensor]:
        """The tensors of all entries by name."""
        return {
            f"{age}.{name}": rows for age, entry in enumerate(self.entries) for name, rows in entry._asdict().items()
        }

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take back what `state` gave."""
        ages = sorted({int(name.partition(".")[0]) for name in state})
        self.entries = [Prototypes(*(state[f"{age}.{name}"].to(device) for name in Prototypes._fields)) for age in ages]
