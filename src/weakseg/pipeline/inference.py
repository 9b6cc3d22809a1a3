"""Label maps for any image: from a trained segmenter or, failing that, from a classifier's own scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator

from weakseg.data.transforms import Factor
from weakseg.methods.store import Model
from weakseg.ops.activation import multi_scale_maps, normalise_image, normalise_present
from weakseg.ops.densecrf import dense_crf, known_parameters, unary_from_probabilities
from weakseg.ops.segmentation import multi_scale_probabilities
from weakseg.settings import Settings

PRESENT = 0.5
"""A class is predicted where the classifier gives it at least this probability."""


def known_crf(name: str | None) -> str | None:
    """Validate the name of a set of CRF parameters, or None for no CRF."""
    return None if name is None else known_parameters(name, "null")


class Inference(Settings):
    """How a network is applied: at several scales and mirrored, then dense CRF; a localiser with a threshold."""

    scales: tuple[Factor, ...] = Field(default=(1.0,), min_length=1, description="sizes of the image, 1 is its own")
    mirror: bool = False
    crf: str | None = Field(default=None, description="the name of a set of CRF parameters; null: no CRF")
    threshold: float = Field(default=0.3, ge=0, description="the background's score, for localisers")

    @field_validator("crf")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return known_crf(name)


@dataclass(frozen=True)
class Prediction:
    """`labels` uint8 (H, W), and the scores they come from: row r of `scores` float32 (R, H, W) is of label
    `score_labels[r]`; the largest wins. A segmenter's scores are probabilities of all classes."""

    labels: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    score_labels: npt.NDArray[np.uint8]


def predict(model: Model, image: npt.NDArray[np.uint8], inference: Inference, device: torch.device) -> Prediction:
    """What a model sees in an image (H, W, 3). Its network must be on `device`, in evaluation mode.

    A segmenter decides every pixel. A localiser first decides which classes are present, by its own scores, and
    then where, by its activation maps against `inference.threshold`.
    """
    if model.kind == "SEGMENTER":
        scores = multi_scale_probabilities(
            model.network.logits, image, inference.scales, mirror=inference.mirror, device=device
        )
        labels = np.arange(len(scores), dtype=np.uint8)
    else:
        scores, labels = _classifier_scores(model, image, inference, device)
    return decide(image, scores, labels, inference.crf, device)


def decide(
    image: npt.NDArray[np.uint8],
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    crf: str | None,
    device: torch.device,
) -> Prediction:
    """The best of `scores` (R, H, W) at every pixel; with CRF, which runs on `device`, they are taken as probabilities
    (unary -ln p)."""
    if crf is not None and len(labels) > 1:
        scores = dense_crf(image, unary_from_probabilities(scores), crf, device)
    return Prediction(labels[scores.argmax(0)], scores, labels)


def against_background(maps: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.float32]:
    """Maps (K, H, W) with a constant background of score `threshold` before them, (K + 1, H, W)."""
    return np.concatenate([np.full((1, *maps.shape[1:]), threshold, np.float32), maps])


def _classifier_scores(
    model: Model, image: npt.NDArray[np.uint8], inference: Inference, device: torch.device
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    with torch.inference_mode():
        batch = torch.from_numpy(normalise_image(image))[None].to(device)
        probabilities = torch.sigmoid(model.network.scores(batch))[0]
    present: Sequence[int] = (torch.nonzero(probabilities >= PRESENT).flatten() + 1).tolist()
    maps = multi_scale_maps(model.network.activation_maps, [image], inference.scales, device)[0].cpu().numpy()
    kept = normalise_present(maps, present, (image.shape[0], image.shape[1]))
    return against_background(kept.upsampled(), inference.threshold), np.array([0, *present], np.uint8)
