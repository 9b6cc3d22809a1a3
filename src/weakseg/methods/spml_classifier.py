"""SPML's last stage: a softmax classifier of a frozen embedding, learned from pseudo-labels.

Ke, Hwang, Yu, "Universal Weakly Supervised Segmentation by Pixel-to-Segment Contrastive Learning", ICLR 2021 (arXiv
2105.00957). With the embedding e(x) of `methods/spml`, which does not change any more, and u = e / |e|:

    L = - mean over pixels with a label of log softmax(f(u))[y]

f is a 3×3 convolution, normalisation, ReLU, dropout and a 1×1 convolution. The scores are resized to the labels. Give
the stage `init_from`: the stage that trained the embedding.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from weakseg.methods import base
from weakseg.methods.crossentropy import cross_entropy
from weakseg.methods.spml.network import BIAS_FACTOR, EmbeddingSegmenter, EmbeddingSettings
from weakseg.models.rates import four_groups


class SPMLClassifier(EmbeddingSegmenter):
    """The network of `SPML` of which the classifier alone learns."""

    class Settings(EmbeddingSettings):
        """The embedding must be that of the stage it comes from."""

        dropout: float = Field(default=0.65, ge=0, lt=1, description="of the classifier")
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of the classifier over lr")

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings, num_classes, settings.dropout, load_weights=load_weights)
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
