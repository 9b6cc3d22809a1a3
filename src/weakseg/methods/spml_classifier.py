"""SPML's last stage: a softmax classifier of a frozen embedding, learned from pseudo-labels.

Ke, Hwang, Yu, "Universal Weakly Supervised Segmentation by Pixel-to-Segment Contrastive Learning", ICLR 2021 (arXiv
2105.00957). With the embedding e(x) of `methods/spml`, which does not change any more, and u = e / |e|:

    L = - mean over pixels with a label of log softmax(f(u))[y]

f is a 3×3 convolution, normalisation, ReLU, dropout and a 1×1 convolution. The scores are resized to the labels. Give
the stage `init_from`: the stage that trained the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from weakseg import parallel
from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.methods import base
from weakseg.methods.crossentropy import cross_entropy
from weakseg.methods.spml.network import BIAS_FACTOR, EmbeddingOptions, EmbeddingSegmenter, EmbeddingSettings
from weakseg.methods.spml.retrieval import LabelledSegments, RetrievalOptions
from weakseg.models.rates import four_groups
from weakseg.ops.activation import Views


class SPMLClassifier(EmbeddingSegmenter):
    """The network of `SPML` of which the classifier alone learns."""

    class Settings(EmbeddingSettings):
        """The embedding must be that of the stage it comes from."""

        dropout: float = Field(default=0.65, ge=0, lt=1, description="of the classifier")
        memory: int = Field(
            default=0, ge=0, description="labelled segments that are kept for retrieval at inference; 0: none"
        )
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of the classifier over lr")

    class Options(EmbeddingOptions):
        """Whether the classifier decides, or the segments that were remembered (`model.memory`)."""

        decide: Literal["classifier", "retrieval"] = Field(default="classifier", description="what decides")
        retrieval: RetrievalOptions = Field(
            default=RetrievalOptions(), description="of segments; the scales of the image are those of the inference"
        )

    memory_prototypes: Tensor
    memory_labels: Tensor

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings, num_classes, settings.dropout, load_weights=load_weights)
        if settings.memory:
            self.register_buffer("memory_prototypes", torch.zeros(settings.memory, settings.dimensions))
            self.register_buffer("memory_labels", torch.full((settings.memory,), VOID))
        self.backbone.requires_grad_(False)
        self.head.requires_grad_(False)

    def start_from(self, other: base.Method) -> None:
        """Take over the embedding; the classifier begins anew."""
        self.backbone.load_state_dict(other.get_submodule("backbone").state_dict())
        self.head.load_state_dict(other.get_submodule("head").state_dict())

    def train(self, mode: bool = True) -> Self:
        """The embedding stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        self.head.eval()
        return self

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """Cross entropy at the size of the labels, summed over the pixels that have one.

        Raises `WeaksegError` for labels that are neither 0 … C nor void.
        """
        with torch.no_grad():
            embeddings = self.embeddings(batch)
        return {"segmentation": cross_entropy(self.classified(embeddings), batch["labels"], "image")}

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """The pixels with a label."""
        return {"segmentation": (batch["labels"] <= self.num_classes).sum()}

    @torch.no_grad()
    def conclude(self, items: Iterable[base.Item], device: torch.device) -> None:
        """Remember the labelled segments of the training images, a random part of them if they are too many."""
        capacity = self.settings.memory
        if not capacity:
            return
        training = self.training
        self.eval()
        mine = [self.remember(item, self.options.retrieval, device) for item in items]
        self.train(training)
        # In the order of the images, whatever the number of processes.
        parts = [part for row in zip_longest(*parallel.gather(mine)) for part in row if part is not None]
        vectors, labels = (np.concatenate([part[name] for part in parts]) for name in ("prototypes", "labels"))
        kept = np.sort(np.random.default_rng(0).permutation(len(labels))[:capacity])
        self.memory_prototypes[: len(kept)] = torch.from_numpy(vectors[kept]).to(device)
        self.memory_labels[: len(kept)] = torch.from_numpy(labels[kept]).to(device)

    def probabilities(
        self, views: Views, device: torch.device, mirrored: Sequence[int], *, mirror: bool
    ) -> Iterator[Tensor]:
        """The classifier's probabilities or the shares of retrieved labels, (1 + C, H, W), their mean over views.

        Raises `WeaksegError` for retrieval without anything that is remembered.
        """
        if self.options.decide == "classifier":
            yield from super().probabilities(views, device, mirrored, mirror=mirror)
            return
        if not self.settings.memory or bool((self.memory_labels == VOID).all()):
            raise WeaksegError(
                "This classifier remembers no segments, so nothing can be retrieved. Train it with model.memory above "
                "0, or set options.decide to classifier."
            )
        with torch.inference_mode():
            known = LabelledSegments(self.memory_prototypes, self.memory_labels).of_classes(1 + self.num_classes)

            def shares(view: Tensor) -> Tensor:
                return self._shares(view, known, self.options.retrieval)

            yield from self._means(shares, views, device, mirrored if mirror else None, lambda maps: maps)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The weights and the biases of the classifier."""
        return four_groups(
            self.classifier.named_parameters(),
            [self.classifier],
            lr,
            new_factor=self.settings.head_lr_factor,
            bias_factor=BIAS_FACTOR,
        )[2:]


SEGMENTER = SPMLClassifier
