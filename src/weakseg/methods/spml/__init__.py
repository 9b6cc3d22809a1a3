"""SPML: one way of learning from tags, boxes, scribbles and points.

Ke, Hwang, Yu, "Universal Weakly Supervised Segmentation by Pixel-to-Segment Contrastive Learning", ICLR 2021 (arXiv
2105.00957), built on SegSort (Hwang et al., ICCV 2019, arXiv 1910.06962).

Whatever weak labels there are, they are a partial label map: a class at some pixels, "unlabelled" (254) at most, void
(255) where nothing is learned. A network embeds pixels, e(x), and with them an image is cut into segments
(`clustering.py`): spherical k-means of v, the direction of e(x) beside the pixel's place, from a uniform grid; clusters
are cut where labels change or low-level regions do. A segment's prototype p is the direction of the mean of u = e / |e|
over it. A pixel x of segment o is then pulled to segments that are the same as its own, and pushed from all others
(`losses.py`; κ is a concentration):

    L(x) = -log( Σ_{P⁺} s / (Σ_{P⁺} s + Σ_{P⁻} s) ),      s_q = exp(κ x · p_q)
    P⁺ = {q ≠ o that are the same as o}, or {o} if there are none,    P⁻ = {q that are not the same as o}

The same are, in four losses whose weighted sum is minimised (section 3.3 of the paper),

    annotation          segments of one label; of pixels and segments that have one
    cooccurrence        segments of images that share a tag; the background is none
    image_similarity    segments of one low-level region, within an image; with v in place of u
    feature_affinity    segments whose label sets have a common member; a segment has the label of the most similar
                        labelled segment of its image, or all labels if none is similar enough

Prototypes are those of the images of all processes and, but for image_similarity, of the last updates (`memory.py`).
A small softmax classifier of u learns beside, from the labels alone and without a gradient to e; it makes this a
segmenter. What one trains for the end is another on the frozen embedding, from pseudo-labels (`spml_classifier.py`).

What is not as in the authors' program: pixels of all processes have the same weight, not processes; the own segment is
left out exactly, also where rounding would let others vanish; feature_affinity is a loss of its own; the memory goes on
where a training was interrupted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from weakseg.errors import WeaksegError
from weakseg.labels import UNLABELLED, VOID
from weakseg.methods import base
from weakseg.methods.crossentropy import cross_entropy
from weakseg.methods.spml.clustering import Segments, local_features, resize_by_corner, segments
from weakseg.methods.spml.losses import contrastive_loss, propagated_labels, shared
from weakseg.methods.spml.memory import Memory, Prototypes, joined
from weakseg.methods.spml.network import BIAS_FACTOR, EmbeddingSegmenter, EmbeddingSettings
from weakseg.models.rates import four_groups
from weakseg.models.registry import BackboneSettings
from weakseg.ops.fields import PARTIAL_LABELS, TAGS, ImageField


class LossSettings(base.Settings):
    """One of the contrastive losses."""

    weight: float = Field(ge=0, description="λ of the loss; 0: it is left out")
    concentration: float = Field(gt=0, description="κ, how much the most similar segments count more than others")


class SPML(EmbeddingSegmenter):
    """The embedding network with its losses. `num_classes` is C, without the background.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(EmbeddingSettings):
        """Defaults are the paper's for tags of VOC."""

        annotation: LossSettings = Field(
            default=LossSettings(weight=0.3, concentration=6), description="the same label, and the classifier's loss"
        )
        cooccurrence: LossSettings = Field(
            default=LossSettings(weight=0.3, concentration=8), description="images that share a tag"
        )
        image_similarity: LossSettings = Field(
            default=LossSettings(weight=0.1, concentration=16), description="the same low-level region"
        )
        feature_affinity: LossSettings = Field(
            default=LossSettings(weight=0, concentration=12), description="the same label by similarity in an image"
        )
        least_affinity: float = Field(
            default=0.95, ge=-1, le=1, description="similarity from which on a segment takes another's label"
        )
        tags: Literal["labels", "image"] = Field(
            default="labels", description="whether tags are the classes of the label map or those known of the image"
        )
        grid: tuple[PositiveInt, PositiveInt] = Field(
            default=(6, 6), description="rows and columns k-means starts from"
        )
        iterations: int = Field(default=10, ge=0, description="of k-means")
        colours: bool = Field(default=False, description="cluster by the colours of pixels, too, not places alone")
        embedding_share: float = Field(
            default=1.0, gt=0, description="weight of u beside places and colours in v after the clustering"
        )
        image_similarity_of: Literal["located", "embedding"] = Field(
            default="located", description="whether the image similarity is one of v or of u"
        )
        positives: Literal["segments", "own"] = Field(
            default="segments", description="own: P⁺ is always the pixel's own segment, as in SegSort"
        )
        memory: int = Field(default=2, ge=0, description="updates whose prototypes are remembered")
        dropout: float = Field(default=0.75, ge=0, lt=1, description="of the classifier")
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")

    fields: ClassVar[Mapping[str, ImageField]] = {"labels": PARTIAL_LABELS, "regions": ImageField("ids"), "tags": TAGS}

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings, num_classes, settings.dropout, load_weights=load_weights)
        self.memory = Memory(settings.memory)

    @classmethod
    def prepare_image(cls, settings: Any, item: base.Item) -> base.Item:
        """With `tags: labels`, the tags are what the label map shows before a part of it is cut."""
        if settings.tags == "image":
            return item
        shown = np.isin(np.arange(1, 1 + len(item["tags"])), item["labels"])
        return {**item, "tags": shown.astype(np.float32)}

    # Losses -----------------------------------------------------------------------------------------------------------

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """The classifier's cross entropy and the contrastive losses, each a sum over what `counts` counts.

        Raises `WeaksegError` for labels that are neither 0 … C nor unlabelled nor void.
        """
        images, labels, tags = batch["image"], batch["labels"], batch["tags"] > 0
        embeddings = self.embeddings(batch)
        scores = self.classified(embeddings.detach())
        known = labels.masked_fill(labels == UNLABELLED, VOID)
        found = {"cross_entropy": self.settings.annotation.weight * cross_entropy(scores, known, "image")}
        with torch.autocast(images.device.type, enabled=False):
            size = (int(embeddings.shape[-2]), int(embeddings.shape[-1]))
            local = local_features(images.float(), size, with_colours=self.settings.colours)
            return found | self.contrast(self.segments(embeddings.float(), local, labels, batch["regions"]), tags)

    def segments(self, embeddings: Tensor, local: Tensor, labels: Tensor, regions: Tensor) -> Segments:
        """The segments of embeddings (N, D, h, w) with local features (N, h, w, L), labels and regions (N, H, W)."""
        settings = self.settings
        return segments(
            embeddings, local, labels, regions, settings.grid, settings.iterations, settings.embedding_share
        )

    def contrast(self, found: Segments, tags: Tensor) -> dict[str, Tensor]:
        """The contrastive losses of segments of images with the `tags` (N, C), as truth values."""
        mine = self.prototypes(found, tags)
        current, first = mine.of_all_processes()
        self.memory.note(current)
        known = joined([current, *self.memory.entries])
        own = first + found.segment
        compute = {
            "annotation": lambda: self._annotation(found, known, own),
            "cooccurrence": lambda: self._contrastive(
                "cooccurrence", found.pixels, known.vectors, own, shared(tags, known.tags), found.image[found.segment]
            ),
            "image_similarity": lambda: self._image_similarity(found, mine),
            "feature_affinity": lambda: self._contrastive(
                "feature_affinity", found.pixels, known.vectors, own, shared(mine.sets, known.sets), found.segment
            ),
        }
        return {name: compute[name]() for name in self.in_force()}

    def in_force(self) -> list[str]:
        """The names of the contrastive losses whose weight is not 0."""
        names = ("annotation", "cooccurrence", "image_similarity", "feature_affinity")
        return [name for name in names if getattr(self.settings, name).weight]

    def prototypes(self, found: Segments, tags: Tensor) -> Prototypes:
        """The prototypes of the segments of this process."""
        sets = tags.new_zeros(len(found.image), 0)
        if self.settings.feature_affinity.weight:
            sets = self.label_sets(found.located_prototypes().detach(), found.label, found.image)
        return Prototypes(found.prototypes(), found.label, tags[found.image], sets)

    def label_sets(self, located: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The labels that segments have by similarity, (S, 1 + C); all where none is similar enough."""
        sets = propagated_labels(located, labels, images, 1 + self.num_classes, self.settings.least_affinity)
        return sets | ~sets.any(1, keepdim=True)

    def _annotation(self, found: Segments, known: Prototypes, own: Tensor) -> Tensor:
        """Labelled pixels and labelled segments alone."""
        label = found.label[found.segment]
        pixels = label <= self.num_classes
        with_label = known.labels <= self.num_classes
        place = with_label.cumsum(0) - 1
        same = torch.arange(1 + self.num_classes, device=label.device)[:, None] == known.labels[with_label]
        return self._contrastive(
            "annotation", found.pixels[pixels], known.vectors[with_label], place[own[pixels]], same, label[pixels]
        )

    def _image_similarity(self, found: Segments, mine: Prototypes) -> Tensor:
        """The sum over images of means over their pixels."""
        located = self.settings.image_similarity_of == "located"
        vectors = found.located if located else found.pixels
        prototypes = found.located_prototypes() if located else mine.vectors
        counts = torch.bincount(found.image).tolist()
        total, first, pixel = vectors.new_zeros(()), 0, 0
        of_image = torch.bincount(found.image[found.segment], minlength=len(counts)).tolist()
        for count, pixels in zip(counts, of_image, strict=True):
            if pixels:
                rows, columns = slice(pixel, pixel + pixels), slice(first, first + count)
                own = found.segment[rows] - first
                region = found.region[columns]
                same = region[:, None] == region
                total = (
                    total
                    + self._contrastive("image_similarity", vectors[rows], prototypes[columns], own, same, own) / pixels
                )
            first, pixel = first + count, pixel + pixels
        return total

    def _contrastive(
        self, name: str, pixels: Tensor, prototypes: Tensor, own: Tensor, same: Tensor, group: Tensor
    ) -> Tensor:
        loss = getattr(self.settings, name)
        own_only = self.settings.positives == "own"
        return loss.weight * contrastive_loss(
            pixels, prototypes, own, same, group, loss.concentration, own_only=own_only
        )

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """Pixels with a label in the image; pixels, with a label or not, and images in the embeddings."""
        labels = batch["labels"]
        seen = resize_by_corner(labels, self.embedding_size(labels.shape[-2:]))
        part = seen != VOID
        counts = {
            "annotation": (seen <= self.num_classes).sum(),
            "cooccurrence": part.sum(),
            "image_similarity": part.flatten(1).any(1).sum(),
            "feature_affinity": part.sum(),
        }
        return {
            "cross_entropy": (labels <= self.num_classes).sum(),
            **{name: counts[name] for name in self.in_force()},
        }

    # Training ---------------------------------------------------------------------------------------------------------

    def end_update(self) -> None:
        """Remember the prototypes of this update."""
        self.memory.end_update()

    def training_state(self) -> dict[str, Tensor]:
        """The memory."""
        return self.memory.state()

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the memory."""
        self.memory.load(state, next(self.parameters()).device)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Weights and biases of the backbone, then of head and classifier, those of normalisations among them."""
        new = [self.head, self.classifier]
        return four_groups(
            self.named_parameters(), new, lr, new_factor=self.settings.head_lr_factor, bias_factor=BIAS_FACTOR
        )


# Published checkpoints ------------------------------------------------------------------------------------------------

_BACKBONE = re.compile(r"resnet_backbone\.(?:conv1\.((?:conv1|bn1)\..+)|res([2-5])\.(.+))")
_ASPP = re.compile(r"aspp\.aspp_([1-4])\.0\.(weight|bias)")
COLOUR_KERNEL = "lfn.smooth_kernel.weight"


def original_name(name: str) -> str | None:
    """Our name of a tensor in the authors' files; None for a name that they do not have."""
    if match := _BACKBONE.fullmatch(name):
        return f"backbone.{match[1]}" if match[1] else f"backbone.layer{int(match[2]) - 1}.{match[3]}"
    if match := _ASPP.fullmatch(name):
        return f"head.c{int(match[1]) - 1}.{match[2]}"
    for theirs, ours in (("pspp.", "head."), ("semantic_classifier.", "classifier.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


def read_published(state: Mapping[str, Tensor]) -> base.Reading:
    """An `SPML` from the tensors of `embedding_model` and `prediction_model` of a checkpoint of the authors' program.

    Raises `WeaksegError` for one without a classifier, or for names that such a file does not have.
    """
    names = {name: name.removeprefix("embedding_model.").removeprefix("prediction_model.") for name in state}
    names = {name: short.removeprefix("module.") for name, short in names.items()}
    own = {}
    for name, short in names.items():
        if short == COLOUR_KERNEL:
            continue
        renamed = original_name(short)
        if renamed is None:
            raise WeaksegError(f"it has a tensor {name}")
        own[renamed] = state[name]
    if "classifier.4.bias" not in own:
        raise WeaksegError("it has no classifier semantic_classifier.4")
    head: Literal["deeplab", "pspnet"] = "pspnet" if "head.1.bias" in own else "deeplab"
    embedding = own.get("head.1.bias" if head == "pspnet" else "head.c0.bias")
    if embedding is None:
        raise WeaksegError("it has no head aspp or pspp")
    settings = SPML.Settings(
        backbone=BackboneSettings(name="resnet101_deep_stem", output_stride=8, weights=None, frozen_stages=2),
        head=head,
        dimensions=len(embedding),
        colours=COLOUR_KERNEL in names.values(),
    )
    ignored = [name for name, short in names.items() if short == COLOUR_KERNEL]
    return base.Reading(settings, len(own["classifier.4.bias"]) - 1, own, ignored)


def _is_published(names: Any) -> bool:
    return any(name.endswith("resnet_backbone.conv1.conv1.0.weight") for name in names)


SEGMENTER = SPML
CHECKPOINTS = [base.Checkpoint("spml", "SPML with ResNet-101 (model-29999.pth)", _is_published, read_published)]

__all__ = ["SPML", "LossSettings", "original_name", "read_published"]
