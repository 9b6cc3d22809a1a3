"""What every backbone offers, whatever its family: the features of five stages."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Backbone(nn.Module):
    """A classification network without its classifier, cut into five stages.

    Stage s (1 … 5) of the original network works at stride 2^s of the image; dilation may keep the late stages
    at a smaller stride. `channels[s - 1]` and `strides[s - 1]` describe the output of stage s.
    """

    channels: tuple[int, int, int, int, int]
    strides: tuple[int, int, int, int, int]

    def __init__(self) -> None:
        super().__init__()
        self._output_sizes: dict[tuple[int, ...], tuple[int, int]] = {}

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to the five stages' features, fine to coarse; feature s has the size
        (N, channels[s - 1], ceil(H / strides[s - 1]), ceil(W / strides[s - 1]))."""

    @abstractmethod
    def freeze(self, stages: int) -> None:
        """Stop learning in the first `stages` stages: their parameters lose `requires_grad`, and they run without
        recording gradients. 0 freezes nothing."""

    @abstractmethod
    def reading(self, stage: int) -> list[nn.Conv2d]:
        """The convolutions of the next stage that read the features of a stage (1 … 4), directly or by way of a
        pooling: the first of a branch, and that of the shortcut. What is added to their outputs is what channels beside
        these features would add."""

    @abstractmethod
    def pass_gradients(self, after: int) -> None:
        """Record gradients in all stages after number `after`, for what is added to the features of that stage. The
        parameters of frozen stages still do not learn."""

    def output_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """The size (h, w) of the last stage for images of a size (H, W), found without computing anything."""
        size = tuple(size)
        if size not in self._output_sizes:
            state = {name: value.to("meta") for name, value in (*self.named_parameters(), *self.named_buffers())}
            with torch.no_grad():  # two images, since one of a single cell has no statistics
                last = functional_call(self, state, (torch.empty(2, 3, *size, device="meta"),))[-1]
            self._output_sizes[size] = (int(last.shape[-2]), int(last.shape[-1]))
        return self._output_sizes[size]
