"""Scores of the artifacts of a run, counted over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.images import image_size, read_bytes
from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.ops.accumulator import Accumulator, as_json
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.boundary import BoundaryScore
from weakseg.ops.confusion import Confusion
from weakseg.ops.context import OnContext, context_scores, on_context
from weakseg.ops.instance_weighted import InstanceWeighted
from weakseg.ops.resize import resize_bilinear, resize_labels
from weakseg.ops.threshold_curve import ThresholdCurve
from weakseg.progress import Progress
from weakseg.threads import threaded

A = TypeVar("A", bound=Accumulator)
LabelMap = npt.NDArray[Any]
CURVE = tuple(i / 100 for i in range(100))
"""The background scores 0.00 … 0.99. The papers' curves end at 0.59, but maps of small objects, or of a classifier that
was trained for long, are best cut higher."""


@dataclass
class MaskScores:
    """How good label maps are: over all pixels, at boundaries, and image by image."""

    confusion: Confusion
    boundary: BoundaryScore
    images: dict[str, float] = field(default_factory=dict)
    weighted: InstanceWeighted | None = None

    @classmethod
    def of(cls, classes: Classes) -> MaskScores:
        """Nothing counted yet."""
        return cls(Confusion(classes.largest + 1), BoundaryScore(classes.largest + 1))

    def update(self, truth: LabelMap, prediction: LabelMap, name: str) -> None:
        """Count one image."""
        alone = Confusion(self.confusion.num_classes)
        alone.update(truth, prediction, name)
        self.confusion.merge(alone)
        self.boundary.update(truth, prediction, name)
        self.images[name] = alone.mean_iou_present if alone.truth.sum() else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; `image_iou` is each image's mean over the classes it shows or is given, null where all
        of its pixels are void."""
        iou = {name: None if np.isnan(value) else round(value, 6) for name, value in self.images.items()}
        found = {**self.confusion.to_dict(), "boundary": self.boundary.to_dict(), "image_iou": iou}
        if self.weighted is not None and self.weighted.of_image:
            found["instance_weighted"] = {
                "iou": as_json(self.weighted.iou()),
                "mean_iou": as_json(self.weighted.mean_iou),
                "images": len(self.weighted.of_image),
            }
        return found


def measure_masks(
    samples: Sequence[Sample],
    classes: Classes,
    read: Callable[[Sample], LabelMap],
    title: str,
    *,
    by_instances: bool = False,
) -> MaskScores:
    """The scores of the label maps that `read` gives, against the samples' ground truth; with `by_instances`, those
    weighted by instances, too, where the samples have objects."""
    scores = MaskScores.of(classes)
    weighted = InstanceWeighted(classes.largest + 1) if by_instances else None
    pairs = _shared(samples, lambda sample: (sample, _truth(sample), read(sample)), title)
    for sample, truth, prediction in pairs:
        scores.update(truth, prediction, sample.name)
        if weighted is not None and sample.objects is not None:
            weighted.update(truth, prediction, read_bytes(sample.objects), sample.name)
    return replace(over_ranks(scores), weighted=_over_ranks(weighted))


def measure_curve(
    samples: Sequence[Sample], classes: Classes, read: Callable[[Sample], ActivationMaps]
) -> ThresholdCurve:
    """The mIoU of activation maps at every background threshold."""
    curve = ThresholdCurve(classes.largest + 1, CURVE[:: 2 if classes.deep else 1])  # a GB of counts for 1,200 classes

    def load(sample: Sample) -> tuple[Sample, LabelMap, ActivationMaps, npt.NDArray[np.float32]]:
        maps = read(sample)
        return sample, _truth(sample), maps, _at_full_size(maps, sample)

    for sample, truth, maps, scores in _shared(samples, load, "threshold curve"):
        curve.update(truth, maps.labels, scores, sample.name)
    return sum_counts(curve)


def measure_context(
    samples: Sequence[Sample], classes: Classes, read: Callable[[Sample], ActivationMaps]
) -> dict[str, Any]:
    """How much of the activation falls on the context of its class (see `ops.context.context_scores`), on the images
    that have a context mask."""

    def load(sample: Sample) -> tuple[str, list[OnContext]]:
        assert sample.context is not None
        try:
            context = sample.context.read()
            if sample.long_side:
                context = resize_labels(context, sample.size())
            return sample.name, on_context(read(sample), context)
        except WeaksegError as error:
            raise WeaksegError(f"{sample.name}: {error}") from None

    drawn = [sample for sample in samples if sample.context is not None]
    found: dict[str, list[OnContext]] = {}
    for part in parallel.gather(dict(_shared(drawn, load, "activation on context"))):
        found.update(part)
    # In an order that does not depend on the number of processes, as sums of fractions do on theirs.
    return context_scores([part for name in sorted(found) for part in found[name]], classes.largest)


def sum_counts(accumulator: A) -> A:
    """The accumulator with the counts of all processes."""
    own = accumulator.state()
    accumulator.add_state({name: parallel.sum_over_ranks(counts) - counts for name, counts in own.items()})
    return accumulator


def over_ranks(scores: MaskScores) -> MaskScores:
    """The scores of all processes' images."""
    images: dict[str, float] = {}
    for part in parallel.gather(scores.images):
        images.update(part)
    return MaskScores(sum_counts(scores.confusion), sum_counts(scores.boundary), dict(sorted(images.items())))


def _at_full_size(maps: ActivationMaps, sample: Sample) -> npt.NDArray[np.float32]:
    """Maps (K, H, W) at the size of the image's file, which the truth has."""
    scores = maps.upsampled()
    return resize_bilinear(scores, image_size(sample.image)) if sample.long_side else scores


def _over_ranks(weighted: InstanceWeighted | None) -> InstanceWeighted | None:
    if weighted is None:
        return None
    images = {name: values for part in parallel.gather(weighted.of_image) for name, values in part.items()}
    return InstanceWeighted(weighted.num_classes, images)


def _truth(sample: Sample) -> LabelMap:
    assert sample.mask is not None
    return sample.mask.read()


T = TypeVar("T")


def _shared(samples: Sequence[Sample], load: Callable[[Sample], T], title: str) -> Iterable[T]:
    """This process's part of the samples, loaded by threads, with progress."""
    mine = parallel.share(samples)
    with Progress(title, len(mine)) as progress:
        for item in threaded(load, mine):
            yield item
            progress.advance()
