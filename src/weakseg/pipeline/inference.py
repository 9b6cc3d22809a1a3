"""Label maps for any image: from a trained segmenter or, failing that, from a classifier's own scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from weakseg.data.transforms import Factor
from weakseg.errors import WeaksegError
from weakseg.methods.base import Deciding, Image, Item, Localiser, Segmenter
from weakseg.methods.store import Model
from weakseg.ops.activation import ActivationMaps, Views, multi_scale_maps, network_outputs, normalise_maps
from weakseg.ops.crf_parameters import CRFParameters, known_or_none
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.otsu import histogram, otsu
from weakseg.ops.segmentation import multi_scale_probabilities
from weakseg.settings import Settings
from weakseg.threads import pipelined

T = TypeVar("T")
LabelArray = npt.NDArray[np.uint8]

Threshold = Annotated[float, Field(ge=0)]

UNDIVIDED = 0.5
"""The threshold of an image whose maps have one value only."""

PRESENT = 0.5
"""A class is predicted where the classifier gives it at least this probability."""


class Inference(Settings):
    """How a network is applied: at several scales and mirrored, then dense CRF; a localiser with a threshold."""

    scales: tuple[Factor, ...] = Field(default=(1.0,), min_length=1, description="sizes of the image, 1 is its own")
    mirror: bool = Field(default=False, description="use the mirror image, too")
    crf: Annotated[str | None, AfterValidator(known_or_none)] = Field(
        default=None, description="the name of a set of CRF parameters; null: no CRF"
    )
    threshold: Threshold | Literal["adaptive"] = Field(
        default="adaptive", description="the background's score, for localisers; adaptive: found in each image's maps"
    )


@dataclass(frozen=True)
class Prediction:
    """`labels` uint8 (H, W), and the scores they come from: row r of `scores` float32 (R, H, W) is of label
    `score_labels[r]`; the largest wins. A segmenter's scores are probabilities of all classes."""

    labels: LabelArray
    scores: npt.NDArray[np.float32]
    score_labels: LabelArray


def predict(
    model: Model,
    image: Image,
    inference: Inference,
    device: torch.device,
    present: Collection[int] | None = None,
) -> Prediction:
    """What a model sees in an image (H, W, 3). Its network must be on `device`, in evaluation mode.

    A segmenter decides every pixel. A localiser first decides which classes are present, by its own scores unless
    their labels are given as `present`, and then where, by its activation maps against `inference.threshold`.
    """
    require_images_only(model)
    fields = model.network.fields_at_inference()
    views = Views.of([image], inference.scales, device, fields)
    ((scores, labels),) = _scores(model, [image], views, inference, device, [present])
    return decide(image, scores.cpu().numpy(), labels, inference.crf, device)


def require_images_only(model: Model) -> None:
    """Raise `WeaksegError` for a network that reads more at inference than images, which files alone do not give."""
    fields = model.network.fields_at_inference().items()
    more = [name for name, field in fields if field.follows != "geometry"]
    if more:
        raise WeaksegError(
            f"The {model.kind} {model.method} reads {', '.join(more)} beside each image, so it works inside of a run "
            "only. Give a model that reads images alone, such as the run's segmenter."
        )


def predict_batches(
    model: Model,
    batches: Iterable[Sequence[T]],
    read: Callable[[T], Item | None],
    write: Callable[[T, Item, Prediction], None],
    inference: Inference,
    device: torch.device,
    present: Callable[[T], Collection[int] | None] = lambda key: None,
) -> Iterator[None]:
    """`predict` for many images with the fields that the network reads at inference, in batches of one size; yields
    once for each that is written. Threads `read` ahead of the network and decide and `write` behind it. A key that
    `read` gives None for is left out. `present` are the labels of the classes in an image, where they are known."""
    fields = model.network.fields_at_inference()

    def prepare(batch: Sequence[T]) -> tuple[list[tuple[T, Item]], Views | None]:
        found = [(key, item) for key in batch if (item := read(key)) is not None]
        items = [item for _, item in found]
        images = [item["image"] for item in items]
        return found, Views.of(images, inference.scales, device, fields, items) if found else None

    def compute(inputs: tuple[list[tuple[T, Item]], Views | None]) -> Iterator[tuple[T, Item, Tensor, LabelArray]]:
        found, views = inputs
        if views is None:
            return
        known = [present(key) for key, _ in found]
        all_scores = _scores(model, [item["image"] for _, item in found], views, inference, device, known)
        for (key, item), (scores, labels) in zip(found, all_scores, strict=True):
            yield key, item, scores, labels

    def finish(result: tuple[T, Item, Tensor, LabelArray]) -> None:
        key, item, scores, labels = result
        # The thread waits for the device here, not the one that keeps it busy.
        write(key, item, decide(item["image"], scores.cpu().numpy(), labels, inference.crf, device))

    return pipelined(prepare, compute, finish, batches)


def _scores(
    model: Model,
    images: Sequence[Image],
    views: Views,
    inference: Inference,
    device: torch.device,
    known: Sequence[Collection[int] | None],
) -> Iterator[tuple[Tensor, LabelArray]]:
    """For each of `images` of one size, scores (R, H, W) before any CRF, perhaps on `device`, and their labels (R,)."""
    network = model.network
    if isinstance(network, Segmenter):
        if isinstance(network, Deciding):
            all_scores = network.probabilities(views, device, model.classes.mirrored(), mirror=inference.mirror)
        else:
            all_scores = multi_scale_probabilities(network.logits, views, device, mirror=inference.mirror)
        for scores in all_scores:
            yield scores, np.arange(len(scores), dtype=np.uint8)
        return
    assert isinstance(network, Localiser)
    labels = [sorted(present or ()) for present in known]
    if any(present is None for present in known):
        original = torch.from_numpy(np.stack(images))
        probabilities = torch.sigmoid(network_outputs(network.scores, original, device, mirror=False, views=views))
        seen = [(torch.nonzero(of_image >= PRESENT).flatten() + 1).tolist() for of_image in probabilities]
        labels = [given if known[i] is not None else seen[i] for i, given in enumerate(labels)]
    maps = multi_scale_maps(network.activation_maps, views, labels, device)
    for present, of_present in zip(labels, maps, strict=True):
        kept = normalise_maps(of_present.cpu().numpy(), present, views.size)
        threshold = adaptive_threshold(kept) if inference.threshold == "adaptive" else inference.threshold
        scores = torch.from_numpy(against_background(kept.upsampled(), threshold))
        yield scores, np.array([0, *present], np.uint8)


def decide(
    image: Image,
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    crf: CRFParameters | str | None,
    device: torch.device,
) -> Prediction:
    """The best of `scores` (R, H, W) at every pixel; with CRF, which runs on `device`, they are taken as probabilities
    (unary -ln p)."""
    if crf is not None and len(labels) > 1:
        scores = dense_crf(image, unary_from_probabilities(scores), crf, device)
    return Prediction(labels[scores.argmax(0)], scores, labels)


def own_threshold(maps: ActivationMaps) -> float | None:
    """Where the values of the best class of one image, cell by cell, fall into two parts (`ops.otsu`); None where they
    are one."""
    parts = otsu(histogram(maps.maps[maps.has_background :].max(0, initial=0)))
    return None if parts is None else parts.threshold


def adaptive_threshold(maps: ActivationMaps, usual: float | None = None) -> float:
    """The background's score for one image, without any mask: half-way between its `own_threshold` and what is `usual`
    in its data set, where that is known."""
    own = own_threshold(maps)
    known = [threshold for threshold in (own, usual) if threshold is not None]
    return sum(known) / len(known) if known else UNDIVIDED


def against_background(maps: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.float32]:
    """Maps (K, H, W) with a constant background of score `threshold` before them, (K + 1, H, W)."""
    return np.concatenate([np.full((1, *maps.shape[1:]), threshold, np.float32), maps])
