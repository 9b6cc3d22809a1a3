"""What a stage of a run works with, and how the processes of a run share the images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from lightning_fabric import Fabric

from weakseg import parallel
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import write_label_map
from weakseg.errors import WeaksegError
from weakseg.progress import Progress
from weakseg.runtime import RuntimeSettings
from weakseg.threads import threaded

if TYPE_CHECKING:
    from weakseg.pipeline.stage import Stage

LOG_NAME = "log.jsonl"

Batch = Sequence[Sample]


@dataclass(frozen=True)
class Context:
    """What a stage works with: `stages` are all of the recipe; `train`, `score` and `val` are the samples that play
    these parts in the run, which works on images of at most `long_side` pixels."""

    stages: Mapping[str, Stage]
    dataset: Dataset
    seed: int
    runtime: RuntimeSettings
    fabric: Fabric
    root: Path
    train: Sequence[Sample]
    score: Sequence[Sample]
    val: Sequence[Sample]
    long_side: int | None = None

    def folder(self, stage: str) -> Path:
        """The folder of a finished stage."""
        return self.root / stage

    def weakly_labelled(self) -> list[Sample]:
        """The samples to make pseudo-masks for: those of `train`, then those of `score` that are not among them."""
        known = {sample.name for sample in self.train}
        return [*self.train, *(sample for sample in self.score if sample.name not in known)]

    def write_labels(self, path: Path, labels: npt.NDArray[Any]) -> None:
        """Write a label map (H, W) of the data set's classes."""
        write_label_map(path, labels, deep=self.dataset.classes.deep)

    def log(self, event: str, **values: Any) -> None:
        """Add a line to the run's `log.jsonl`."""
        write_log(self.root, event, **values)


def write_log(root: Path, event: str, **values: Any) -> None:
    """Add one event to `log.jsonl` of a run; only the first process writes."""
    if parallel.rank() == 0:
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values}
        with (root / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def complete(
    title: str,
    samples: Sequence[Sample],
    path: Callable[[Sample], Path],
    make: Callable[..., object],
    through: Callable[..., Iterable[object]] = threaded,
) -> None:
    """Let the processes share the images and `make`, for each whose file `path` is not there yet, that file.

    `through` is how the images go through `make`: over threads, one after the other with `map`, or by way of something
    else, whose results `make` then takes as well.
    """
    mine = parallel.share(samples)
    missing = [sample for sample in mine if not path(sample).exists()]
    with Progress(title, len(mine), done=len(mine) - len(missing)) as progress:
        for _ in through(make, missing):
            progress.advance()
    parallel.barrier()


def complete_batches(
    title: str,
    samples: Sequence[Sample],
    batch_size: int,
    path: Callable[[Sample], Path],
    through: Callable[[list[Batch]], Iterable[object]],
) -> None:
    """What `complete` does, for images that go through a network in batches of one size.

    `through` makes the files of all images of the batches that it is given, and yields once for each image.
    """
    batches = parallel.share(same_size_batches(samples, batch_size))
    waiting = [batch for batch in batches if not all(path(sample).exists() for sample in batch)]
    total = sum(map(len, batches))
    with Progress(title, total, done=total - sum(map(len, waiting))) as progress:
        for _ in through(waiting):
            progress.advance()
    parallel.barrier()


def same_size_batches(samples: Sequence[Sample], batch_size: int) -> list[Batch]:
    """Batches of images of one size. They depend on the samples alone, not on what is done already or by whom,
    so that the last bits of the results do not either."""
    by_size: dict[tuple[int, int], list[Sample]] = {}
    for sample, size in zip(samples, threaded(Sample.size, samples), strict=True):
        by_size.setdefault(size, []).append(sample)
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


def require_labels(samples: Sequence[Sample], split: str) -> None:
    """Raise `WeaksegError` unless something is known of every sample."""
    unknown = [sample.name for sample in samples if not sample.labels.known]
    if unknown:
        raise WeaksegError(
            f'{len(unknown)} of {len(samples)} images of the split "{split}" have no tags and no other weak label, '
            f"the first is {unknown[0]}. Tag them, or take them out of the split."
        )
