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

    def output_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """The size (h, w) of the last stage for images of a size (H, W), found without computing anything."""
        size = tuple(size)
        if size not in self._output_sizes:
            state = {name: value.to("meta") for name, value in (*self.named_parameters(), *self.named_buffers())}
            with torch.no_grad():  # two images, since one of a single cell has no statistics
                last = functional_call(self, state, (torch.empty(2, 3, *size, device="meta"),))[-1]
            self._output_sizes[size] = (int(last.shape[-2]), int(last.shape[-1]))
        return self._output_sizes[size]
