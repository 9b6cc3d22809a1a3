"""What every backbone offers, whatever its family: the features of five stages."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module):
    """A classification network without its classifier, cut into five stages.

    Stage s (1 … 5) of the original network works at stride 2^s of the image; dilation may keep the late stages
    at a smaller stride. `channels[s - 1]` and `strides[s - 1]` describe the output of stage s.
    """

    channels: tuple[int, int, int, int, int]
    strides: tuple[int, int, int, int, int]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to the five stages' features, fine to coarse; feature s has the size
        (N, channels[s - 1], ceil(H / strides[s - 1]), ceil(W / strides[s - 1]))."""

    @abstractmethod
    def freeze(self, stages: int) -> None:
        """Stop learning in the first `stages` stages: their parameters lose `requires_grad`, and they run without
        recording gradients. 0 freezes nothing."""
