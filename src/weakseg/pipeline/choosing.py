"""Settings chosen on a few images with masks, and how sure the choice is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.ops.bootstrap import CONFIDENCE, Counts, gain_interval, mean_iou
from weakseg.ops.confusion import Confusion
from weakseg.pipeline.inference import LabelArray
from weakseg.progress import Progress
from weakseg.threads import threaded

MOST = 40
"""So many masks say enough: at most so many images are tried."""

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen on some `images`: the best candidate, or the usual one where the best is not surely better.
    `best` and `usual` are their mean IoU there, `interval` is the bootstrap interval of the difference."""

    candidate: T
    images: int
    candidates: int
    best: float
    usual: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = (f"{100 * end:+.1f}" for end in self.interval)
        kept = "" if self.interval[0] > 0 else ", so the rule without masks is kept"
        return (
            f"chosen on {self.images} masks: the best of {self.candidates} has a mIoU of {100 * self.best:.1f} % "
            f"there, the rule without masks {100 * self.usual:.1f} %; {CONFIDENCE:.0%} interval of the gain {low} to "
            f"{high}{kept}"
        )


def choose(
    samples: Sequence[Sample],
    num_classes: int,
    candidates: Sequence[T],
    decide: Callable[[T, Sample], LabelArray],
) -> Choice[T]:
    """The candidate with the best label maps on samples with masks, if it is surely better (the interval of the gain
    lies above 0) than the first, which is the usual one: the best of many on few images often is worse than that
    elsewhere. All processes share the images and get the same answer."""
    tried = samples[:: -(-len(samples) // MOST)]

    def confusions(sample: Sample) -> Counts:
        assert sample.mask is not None
        truth = sample.mask.read()
        found = []
        for candidate in candidates:
            counted = Confusion(num_classes)
            counted.update(truth, decide(candidate, sample), sample.name)
            found.append(counted.counts)
        return np.stack(found)

    mine, own = parallel.share(list(enumerate(tried))), {}
    with Progress("choosing on masks", len(mine)) as progress:
        for (place, _), found in zip(mine, threaded(lambda pair: confusions(pair[1]), mine), strict=True):
            own[place] = found
            progress.advance()
    merged = {place: found for part in parallel.gather(own) for place, found in part.items()}
    # In the order of the images, so that the number of processes changes nothing.
    counts = np.stack([merged[place] for place in range(len(tried))], axis=1)
    scores = mean_iou(counts.sum(1))
    best = int(scores.argmax())
    interval = gain_interval(counts[best], counts[0])
    chosen = candidates[best if interval[0] > 0 else 0]
    return Choice(chosen, len(tried), len(candidates), float(scores[best]), float(scores[0]), interval)
