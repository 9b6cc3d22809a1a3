"""SPML's pseudo-labels: class scores that walk over an image by the similarity of its embedding.

Ke, Hwang, Yu, ICLR 2021 (arXiv 2105.00957), appendix. With unit embeddings f_i of the cells of an image (8 × 8 pixels),

    A_ij = mean over views of exp(5 f_i · f_j - 5),    B = A^20 elementwise,    T_ij = B_ij / Σ_k B_kj,
    R = S · T^64,

where S are scores of classes in cells: activation maps, or what a classifier says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from weakseg.methods.spml.clustering import normalised, numbered, prototypes, segment_sums
from weakseg.methods.spml.inference import Network, Size, padded, resized
from weakseg.methods.spml.retrieval import image_clusters
from weakseg.settings import Settings

CELL = 8
"""Pixels per cell."""
STEPS = 64
EXPONENT = 20
LEAST_SHARE = 0.15
BACKGROUND_ALPHA = 6.0


def cells_of(size: Size) -> Size:
    """The cells (h, w) of an image (H, W), one at least along each axis."""
    return max(1, size[0] // CELL), max(1, size[1] // CELL)


# The walk -------------------------------------------------------------------------------------------------------------


def affinity(features: Tensor) -> Tensor:
    """exp(5 f_i · f_j - 5), (n, n), of features (D, h, w) of any length in n = h · w cells."""
    unit = normalised(features.flatten(1).T)
    return (5 * unit @ unit.T - 5).exp()


def transition(affinities: Tensor, exponent: float = EXPONENT) -> Tensor:
    """T (n, n) of affinities A (n, n): columns sum to 1."""
    powers = affinities**exponent
    return powers / powers.sum(0)


def walk(seed: Tensor, step: Tensor, steps: int = STEPS) -> Tensor:
    """S · T^steps of a seed S (K, h, w) and T (n, n).

    Multiplies the seed `steps` times or T with itself log₂(steps) times, whichever is less work: rows of zeros stay
    zero and cost nothing.
    """
    cells = seed.flatten(1)
    rows = cells.any(1)
    walked = cells.clone()
    if steps and rows.any():
        walked[rows] = _walked(cells[rows], step, steps)
    return walked.reshape(seed.shape)


def _walked(rows: Tensor, step: Tensor, steps: int) -> Tensor:
    squarings = steps.bit_length() - 1
    if steps != 1 << squarings or len(rows) * steps <= squarings * len(step) + len(rows):
        for _ in range(steps):
            rows = rows @ step
        return rows
    for _ in range(squarings):
        step = step @ step
    return rows @ step


# Seeds ----------------------------------------------------------------------------------------------------------------


def activation_seed(
    maps: Tensor, labels: Sequence[int], count: int, cells: Size, alpha: float = BACKGROUND_ALPHA
) -> Tensor:
    """The seed (count, *cells) of activation maps (K, h, w) in 0 … 1 of `labels` 1 … count - 1 (step A).

    The background, row 0, has (1 - largest activation)^alpha.
    """
    seed = maps.new_zeros(count, *maps.shape[1:])
    seed[list(labels)] = maps
    seed[0] = (1 - maps.amax(0)) ** alpha if len(maps) else 1
    return resized(seed[None], cells)[0]


def present_seed(scores: Tensor, present: Collection[int]) -> Tensor:
    """Scores (K, h, w) of classes, each over its largest, with 0 for classes that are not `present` (steps C, D, E)."""
    seed = torch.zeros_like(scores)
    kept = sorted(present)
    seed[kept] = scores[kept] / scores[kept].amax((1, 2), keepdim=True).clamp(min=1e-12)
    return seed


def propagated_scores(
    embedding: Tensor, labels: Tensor, regions: Tensor, count: int, grid: Size, iterations: int = 10
) -> Tensor:
    """Scores (count, h, w) that points give by similarity (step E).

    Clusters of the `embedding` (D, h, w) are cut where `labels` and `regions` (h, w) change. Each pixel votes for the
    label of the most similar segment that has a label below `count`; a segment's scores are the shares of the votes.
    """
    height, width = (int(side) for side in embedding.shape[1:])
    unit = normalised(embedding.permute(1, 2, 0))
    cluster = image_clusters(embedding, grid, iterations).flatten()
    segment, kinds = numbered(cluster, labels.flatten().long(), regions.flatten().long())
    pixels, label = unit.flatten(0, 1), kinds[:, 1]
    known = label < count
    if not known.any():
        return embedding.new_zeros(count, height, width)
    similar = (pixels @ prototypes(pixels, segment, len(kinds))[known].T).argmax(1)
    votes = segment_sums(F.one_hot(label[known][similar], count).to(unit), segment, len(kinds))
    shares = votes / votes.sum(1, keepdim=True)
    return shares[segment].reshape(height, width, count).permute(2, 0, 1)


def shown(labels: Tensor | npt.NDArray[np.uint8], count: int) -> set[int]:
    """The classes in a partial label map, with the background, whether it has some or not."""
    return {0, *(int(label) for label in np.unique(np.asarray(labels)) if label < count)}


def relabelled(shares: Tensor, present: Collection[int]) -> Tensor:
    """Shares (K, H, W) of retrieved labels (step B): those of `present` classes over their largest, but not over less
    than 0.15. Other classes stay as they are."""
    kept = sorted(present)
    result = shares.clone()
    result[kept] = shares[kept] / shares[kept].amax((1, 2), keepdim=True).clamp(min=LEAST_SHARE)
    return result


# Whole images ---------------------------------------------------------------------------------------------------------


class SpreadOptions(Settings):
    """Defaults are those for boxes, scribbles and points (step D)."""

    seed: Literal["classifier", "activations", "points"] = Field(
        default="classifier",
        description="what walks: the classifier's probabilities, activation maps (from tags), or what labelled "
        "segments say of similar pixels (which needs regions)",
    )
    alpha: float | Literal["adaptive"] = Field(
        default=BACKGROUND_ALPHA,
        description="activations: the background is (1 - largest activation) to this power; adaptive: the power "
        "with which it is as strong as the classes where each image's maps fall into two parts",
    )
    scales: tuple[float, ...] = Field(default=(1.0,), min_length=1, description="sizes of the image, 1 is its own")
    mirror: bool = Field(default=True, description="use the mirror image, too")
    average: Literal["probabilities", "scores"] = Field(
        default="probabilities", description="of which the classifier's mean over views is taken"
    )
    steps: int = Field(default=64, ge=0, description="of the walk")
    grid: tuple[PositiveInt, PositiveInt] = Field(
        default=(24, 24), description="points: rows and columns that k-means starts from"
    )


def view_features(network: Network, view: Tensor, crop: Size, *, mirrored: bool) -> Tensor:
    """What a network says of the pixels (D, H, W) of a normalised view (3, H, W), which it sees as a whole, padded to
    `crop` at least; mirrored back."""
    image = padded(view, crop)
    whole = resized(network(image[None]), (int(image.shape[1]), int(image.shape[2])))[0]
    cut = whole[:, : view.shape[1], : view.shape[2]]
    return cut.flip(2) if mirrored else cut


def image_affinity(features: Sequence[Tensor], cells: Size) -> Tensor:
    """A (n, n) of features (D, any, any) of the views of an image, as they are brought to its cells."""
    return torch.stack([affinity(resized(view[None], cells)[0]) for view in features]).mean(0)


def classifier_scores(logits: Sequence[Tensor], cells: Size, average: str) -> Tensor:
    """Probabilities (K, h, w) in cells, from the logits (K, any, any) of the views of an image."""
    at_cells = torch.stack([resized(view[None], cells)[0] for view in logits])
    return at_cells.softmax(1).mean(0) if average == "probabilities" else at_cells.mean(0).softmax(0)


def halved_features(embeddings: Network, image: Tensor, crop: Size) -> Tensor:
    """Embeddings (D, H // 2, W // 2) of a normalised image (3, H, W), padded to `crop` at least (step E)."""
    whole = padded(image, crop)
    full = resized(embeddings(whole[None]), (int(whole.shape[1]), int(whole.shape[2])))
    half = resized(full, (max(1, whole.shape[1] // 2), max(1, whole.shape[2] // 2)))[0]
    return half[:, : max(1, image.shape[1] // 2), : max(1, image.shape[2] // 2)]
