"""Label maps for any image: from a trained segmenter or, failing that, from a classifier's own scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.data.transforms import Factor
from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, Classes, label_array
from weakseg.methods.base import Deciding, Image, Item, Localiser, Segmenter
from weakseg.methods.store import Model
from weakseg.ops.activation import ActivationMaps, Views, multi_scale_maps, network_outputs, normalise_maps
from weakseg.ops.background import adaptive_threshold, against_background
from weakseg.ops.crf_parameters import CRFParameters, known_or_none
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.enlarge import enlarge_scores, enlarge_to_labels
from weakseg.ops.resize import shrink_image
from weakseg.ops.segmentation import multi_scale_probabilities
from weakseg.ops.windows import ALIGNMENT, SMALLEST_SIDE, cells, side_for, windows
from weakseg.settings import Settings
from weakseg.threads import pipelined

T = TypeVar("T")
LabelArray = npt.NDArray[Any]
"""uint8, or uint16 where there are more than 254 classes."""

Threshold = Annotated[float, Field(ge=0)]

WINDOW_MEMORY = 2 << 30
"""An image whose prediction would take more bytes is looked at through windows. They are estimated: for each pixel
those of the network at the image's own size, of the scores of each label, and of the CRF for each that may win."""
BYTES_OF_NETWORK, BYTES_OF_SCORES, BYTES_OF_CRF, LABELS_OF_CRF = 250, 12, 40, 21

MANY_SCORES = 1 << 26
"""With more scores of one image (labels times pixels), a CRF is given those labels only that may win: where, at one
pixel at least, they reach this part of the best."""
NEAR_THE_BEST = 0.5

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

    window: Annotated[int, Field(ge=SMALLEST_SIDE, multiple_of=ALIGNMENT)] | Literal["auto"] | None = Field(
        default="auto",
        repr=False,  # what stages make was made without this setting once
        description="pixels: the side of overlapping windows that larger images are looked at through, for less "
        "memory; auto: where the whole image would take more than about 2 GB; null: never",
    )


Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """`labels` (H, W), and the scores they come from: row r of `scores` float32 (R, H, W) is of label
    `score_labels[r]`; the largest wins. A segmenter's scores are probabilities of all classes. Where scores are not
    kept, they have no rows."""

    labels: LabelArray
    scores: Scores
    score_labels: LabelArray

    def enlarged(self, small: Image, image: Image, *, keep_scores: bool = False) -> Prediction:
        """What was predicted for a `small` copy (h, w, 3), at the size of `image` (H, W, 3)."""
        if image.shape == small.shape:
            return self
        labels = self.score_labels[enlarge_to_labels(self.scores, small, image)]
        scores = enlarge_scores(self.scores, small, image) if keep_scores else _no_scores(image)
        return Prediction(labels, scores, self.score_labels)

    def of_file(self, sample: Sample, image: Image) -> Prediction:
        """What was predicted for the `image` (h, w, 3) that a run works on, at the size of the sample's file."""
        return self.enlarged(image, read_image(sample.image)) if sample.long_side else self


def predict(
    model: Model,
    image: Image,
    inference: Inference,
    device: torch.device,
    present: Collection[int] | None = None,
    *,
    keep_scores: bool = True,
) -> Prediction:
    """What a model sees in an image (H, W, 3). Its network must be on `device`, in evaluation mode. The image is looked
    at as large as the model's training images were; the result has its full size. `keep_scores` keeps all scores.

    A segmenter decides every pixel. A localiser first decides which classes are present, by its own scores unless
    their labels are given as `present`, and then where, by its activation maps against `inference.threshold`.
    """
    require_images_only(model)
    small = shrink_image(image, model.long_side)
    if side := window_side(model, small.shape[:2], inference):
        found = _in_windows(model, small, side, inference, device, present, keep_scores or small is not image)
    else:
        views = Views.of([small], inference.scales, device, model.network.fields_at_inference())
        ((scores, labels),) = _scores(model, [small], views, inference, device, [present])
        found = decide(small, scores.cpu().numpy(), labels, inference.crf, device)
    return found.enlarged(small, image, keep_scores=keep_scores)


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
    *,
    keep_scores: bool = True,
) -> Iterator[None]:
    """`predict` for many images with the fields that the network reads at inference, in batches of one size; yields
    once for each that is written. Threads `read` ahead of the network and decide and `write` behind it. A key that
    `read` gives None for is left out. `present` are the labels of the classes in an image, where they are known.

    Images are looked at as `read` gives them, and results have their size: `read` scales large ones down, `write` takes
    `Prediction.enlarged`."""
    fields = model.network.fields_at_inference()
    Ready = Callable[[], Prediction]

    def prepare(batch: Sequence[T]) -> tuple[list[tuple[T, Item]], Views | None]:
        found = [(key, item) for key in batch if (item := read(key)) is not None]
        items = [item for _, item in found]
        images = [item["image"] for item in items]
        if not found or window_side(model, images[0].shape[:2], inference):
            return found, None
        return found, Views.of(images, inference.scales, device, fields, items)

    def compute(inputs: tuple[list[tuple[T, Item]], Views | None]) -> Iterator[tuple[T, Item, Ready]]:
        found, views = inputs
        known = [present(key) for key, _ in found]
        if views is None:
            for (key, item), labels_known in zip(found, known, strict=True):
                image = item["image"]
                side = window_side(model, image.shape[:2], inference)
                prediction = _in_windows(model, image, side, inference, device, labels_known, keep_scores)
                yield key, item, partial(_same, prediction)
            return
        all_scores = _scores(model, [item["image"] for _, item in found], views, inference, device, known)
        for (key, item), (scores, labels) in zip(found, all_scores, strict=True):
            yield key, item, partial(_decided, item["image"], scores, labels, inference.crf, device)

    def finish(result: tuple[T, Item, Ready]) -> None:
        key, item, ready = result
        # The thread waits for the device here, not the one that keeps it busy.
        write(key, item, ready())

    return pipelined(prepare, compute, finish, batches)


def _same(prediction: Prediction) -> Prediction:
    return prediction


def _decided(image: Image, scores: Tensor, labels: LabelArray, crf: str | None, device: torch.device) -> Prediction:
    return decide(image, scores.cpu().numpy(), labels, crf, device)


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
        score_labels = all_labels(model.classes)
        for scores in all_scores:
            yield (scores[score_labels.tolist()] if model.classes.deep else scores), score_labels
        return
    assert isinstance(network, Localiser)
    labels = [sorted(present or ()) for present in known]
    if any(present is None for present in known):
        seen = _present(network, images, device, views)
        labels = [given if known[i] is not None else seen[i] for i, given in enumerate(labels)]
    maps = multi_scale_maps(network.activation_maps, views, labels, device)
    for present, of_present in zip(labels, maps, strict=True):
        kept = normalise_maps(of_present.cpu().numpy(), present, views.size)
        scores = torch.from_numpy(against_background(kept.upsampled(), _threshold(kept, model, inference)))
        yield scores, label_array([BACKGROUND, *present])


def _present(
    network: Localiser, images: Sequence[Image], device: torch.device, views: Views | None = None
) -> list[list[int]]:
    """The labels of the classes that a localiser finds in each of the images of one size."""
    stacked = torch.from_numpy(np.stack(images))
    probabilities = torch.sigmoid(network_outputs(network.scores, stacked, device, mirror=False, views=views))
    return [(torch.nonzero(of_image >= PRESENT).flatten() + 1).tolist() for of_image in probabilities]


def _threshold(maps: ActivationMaps, model: Model, inference: Inference) -> float:
    if inference.threshold == "adaptive":
        return adaptive_threshold(maps, model.usual_threshold)
    return inference.threshold


# Large images ---------------------------------------------------------------------------------------------------------


def window_side(model: Model, size: tuple[int, int], inference: Inference) -> int | None:
    """The side of the windows that an image of `size` (H, W) is looked at through; None for all of it at once.

    A network that reads fields at inference sees whole images.
    """
    side = inference.window
    if side is None or model.network.fields_at_inference():
        return None
    if side == "auto":
        labels = 1 + model.classes.largest
        of_crf = BYTES_OF_CRF * min(labels, LABELS_OF_CRF) if inference.crf else 0
        bytes_per_pixel = BYTES_OF_NETWORK * max(inference.scales) ** 2 + BYTES_OF_SCORES * labels + of_crf
        pixels = WINDOW_MEMORY / bytes_per_pixel
        if size[0] * size[1] <= pixels:
            return None
        side = side_for(pixels)
    return side if max(size) > side else None


def _in_windows(
    model: Model,
    image: Image,
    side: int | None,
    inference: Inference,
    device: torch.device,
    present: Collection[int] | None,
    keep_scores: bool,
) -> Prediction:
    """What a model sees in an image window by window. A localiser's maps are put together before they are normalised,
    and classes are present where a window shows them."""
    assert side is not None
    size, network = (image.shape[0], image.shape[1]), model.network
    if isinstance(network, Localiser):
        maps = _maps_in_windows(network, image, side, inference, device, present)
        threshold = _threshold(maps, model, inference)
        score_labels = label_array([BACKGROUND, *maps.labels])
    else:
        score_labels = all_labels(model.classes)
    labels = np.empty(size, score_labels.dtype)
    kept = np.zeros((len(score_labels), *size), np.float32) if keep_scores else _no_scores(image)
    for window in windows(size, side):
        seen = np.ascontiguousarray(image[window.seen])
        if isinstance(network, Localiser):
            part = maps.maps[:, *cells(window.seen, maps.stride)]
            scores = against_background(replace(maps, maps=part, size=window.size).upsampled(), threshold)
        else:
            views = Views.of([seen], inference.scales, device)
            ((found, _),) = _scores(model, [seen], views, inference, device, [None])
            scores = found.cpu().numpy()
        decided = decide(seen, scores, score_labels, inference.crf, device)
        labels[window.decided] = decided.labels[window.inside()]
        if keep_scores:
            kept[:, *window.decided] = decided.scores[:, *window.inside()]
    return Prediction(labels, kept, score_labels)


def _maps_in_windows(
    network: Localiser,
    image: Image,
    side: int,
    inference: Inference,
    device: torch.device,
    present: Collection[int] | None,
) -> ActivationMaps:
    """The normalised maps of the classes present in a large image."""
    size = (image.shape[0], image.shape[1])
    parts = [(window, np.ascontiguousarray(image[window.seen])) for window in windows(size, side)]
    if present is None:
        present = {label for _, seen in parts for label in _present(network, [seen], device)[0]}
    labels, stride = sorted(present), 4
    maps = np.zeros((len(labels), -(-size[0] // stride), -(-size[1] // stride)), np.float32)
    for window, seen in parts:
        views = Views.of([seen], inference.scales, device)
        (found,) = multi_scale_maps(network.activation_maps, views, [labels], device, stride)
        maps[:, *cells(window.decided, stride)] = found.cpu().numpy()[:, *window.inside(stride)]
    return normalise_maps(maps, labels, size, stride)


def all_labels(classes: Classes) -> LabelArray:
    """The labels of the background and all classes, in order."""
    return label_array([BACKGROUND, *classes.labels])


def _no_scores(image: Image) -> Scores:
    return np.empty((0, *image.shape[:2]), np.float32)


# Decisions ------------------------------------------------------------------------------------------------------------


def decide(
    image: Image,
    scores: npt.NDArray[np.float32],
    labels: LabelArray,
    crf: CRFParameters | str | None,
    device: torch.device,
) -> Prediction:
    """The best of `scores` (R, H, W) at every pixel; with CRF, which runs on `device`, they are taken as probabilities
    (unary -ln p)."""
    if crf is not None and len(labels) > 1:
        rows = _able_to_win(scores)
        refined = dense_crf(image, unary_from_probabilities(scores[rows]), crf, device)
        if len(rows) == len(scores):
            scores = refined
        else:
            scores = np.zeros_like(scores)
            scores[rows] = refined
    return Prediction(labels[scores.argmax(0)], scores, labels)


def _able_to_win(scores: Scores) -> npt.NDArray[np.intp]:
    """The rows of scores (R, H, W) that a CRF may let win: all, unless they take much memory, and then those that come
    near the best anywhere."""
    if scores.size <= MANY_SCORES:
        return np.arange(len(scores))
    best = scores.max(0) * np.float32(NEAR_THE_BEST)
    return np.array([row for row, of_row in enumerate(scores) if (of_row >= best).any()])
