"""What ResNet and MobileNet have in common: five stages that run in turn, dilation in place of stride, freezing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weakseg.errors import WeaksegError
from weakseg.models.backbone import Backbone

OUTPUT_STRIDES = (8, 16, 32)


class StagePlan(NamedTuple):
    """How one stage reaches its resolution.

    `stride` is that of its first block (1 or 2). `first_dilation` is the rate of the convolution that has, or had,
    the stride, and `dilation` that of all later ones.
    """

    stride: int
    first_dilation: int
    dilation: int
    output_stride: int


def plan_stages(output_stride: int, dilated: bool) -> list[StagePlan]:
    """The plans of the stages 1 … 5 of a network of stride 32 that is kept at a smaller `output_stride`.

    A late stage loses its stride. With `dilated`, the convolutions behind the lost stride get twice the rate (the
    "à trous" algorithm, Chen et al. 2015, section 3.1): every 2nd pixel of every 2nd row of the result is then what
    the original network computes. Without, they keep their rate and see half the context (as IRNet's layer4 does).
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output stride {output_stride} is not one of {OUTPUT_STRIDES}")
    plans = []
    reached, dilation = 1, 1
    for _ in range(5):
        stride = 2 if reached < output_stride else 1
        reached *= stride
        first_dilation = dilation
        if dilated and stride == 1:
            dilation *= 2
        plans.append(StagePlan(stride, first_dilation, dilation, reached))
    return plans


def require_stride_8(name: str, output_stride: int, dilated: bool) -> None:
    """Raise `WeaksegError` for settings that a network, which exists at stride 8 with dilation alone, does not have."""
    if output_stride != 8 or not dilated:
        raise WeaksegError(
            f'The backbone "{name}" exists at stride 8 with dilation alone. Set its output_stride to 8 and leave '
            "dilated at true."
        )


class StagedBackbone(Backbone):
    """A backbone that is a chain of five stages. A family says which of its modules form a stage."""

    frozen_stages = 0

    def __init__(self, channels: tuple[int, int, int, int, int], plans: Sequence[StagePlan]) -> None:
        super().__init__()
        self.channels = channels
        first, second, third, fourth, fifth = (plan.output_stride for plan in plans)
        self.strides = (first, second, third, fourth, fifth)

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """The modules of each of the five stages, in the order in which they run."""

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = images.contiguous(memory_format=torch.channels_last)  # the fastest layout of all convolutions here
        for index, stage in enumerate(self.stages()):
            with self.recording(index + 1):
                for module in stage:
                    x = module(x)
            features.append(x)
        return features

    def recording(self, stage: int) -> torch.set_grad_enabled:
        """A context in which gradients are recorded if they are outside of it and the stage (1 … 5) is not frozen."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and stage > self.frozen_stages)

    def pass_gradients(self, after: int) -> None:
        self.frozen_stages = min(self.frozen_stages, after)

    def freeze(self, stages: int) -> None:
        self.frozen_stages = stages
        for index, stage in enumerate(self.stages()):
            for module in stage:
                module.requires_grad_(index >= stages)
