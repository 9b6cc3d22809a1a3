"""ResNet-38, the wide network "A1" with dilation in place of its late strides and the names of its PyTorch conversions.

Wu, Shen, van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition", Pattern Recognition
2019 (arXiv 1611.10080), as used by AffinityNet (Ahn and Kwak, CVPR 2018) and SEAM (Wang et al., CVPR 2020). It is a
pre-activation network (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016): normalisation and ReLU
come before a convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.models.norm import FixedBatchNorm2d, initialise
from weakseg.models.stages import StagedBackbone, StagePlan, require_stride_8

CHANNELS = (128, 256, 512, 1024, 4096)
STRIDES = (2, 4, 8, 8, 8)
BLOCKS = (("b2",), ("b3",), ("b4",), ("b5",), ("b6", "b7"))


class Block(nn.Module):
    """x + branch(relu(norm(x))). Where the shape changes, the *activated* x is projected by `conv_branch1` instead."""

    bn_branch2a: nn.BatchNorm2d
    conv_branch2a: nn.Conv2d
    conv_branch1: nn.Conv2d | None

    def branch(self, activated: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        activated = activate(self.bn_branch2a, x)
        return x + self.branch(activated) if self.conv_branch1 is None else self.project(activated)

    def project(self, activated: Tensor) -> Tensor:
        """The output of a block that projects, from its activated input: it needs nothing else."""
        assert self.conv_branch1 is not None
        return self.conv_branch1(activated) + self.branch(activated)


class BasicBlock(Block):
    """Two 3×3 convolutions; the first has the stride and `first_dilation`."""

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: int, first_dilation: int, dilation: int
    ) -> None:
        super().__init__()
        self.bn_branch2a = FixedBatchNorm2d(in_channels)
        self.conv_branch2a = _conv3x3(in_channels, width, stride, first_dilation)
        self.bn_branch2b1 = FixedBatchNorm2d(width)
        self.conv_branch2b1 = _conv3x3(width, out_channels, 1, dilation)
        projects = stride != 1 or in_channels != out_channels
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if projects else None

    def branch(self, activated: Tensor) -> Tensor:
        return self.conv_branch2b1(activate(self.bn_branch2b1, self.conv_branch2a(activated)))


class Bottleneck(Block):
    """1×1, dilated 3×3 and 1×1 convolutions with dropout of channels between them; always projects."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = FixedBatchNorm2d(in_channels)
        self.conv_branch2a = nn.Conv2d(in_channels, out_channels // 4, 1, bias=False)
        self.bn_branch2b1 = FixedBatchNorm2d(out_channels // 4)
        self.conv_branch2b1 = _conv3x3(out_channels // 4, out_channels // 2, 1, dilation)
        self.bn_branch2b2 = FixedBatchNorm2d(out_channels // 2)
        self.conv_branch2b2 = nn.Conv2d(out_channels // 2, out_channels, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def branch(self, activated: Tensor) -> Tensor:
        x = self.dropout(activate(self.bn_branch2b1, self.conv_branch2a(activated)))
        x = self.dropout(activate(self.bn_branch2b2, self.conv_branch2b1(x)))
        return self.conv_branch2b2(x)


def activate(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalisation and ReLU."""
    return F.relu(norm(x), inplace=True)


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


class ResNet38(StagedBackbone):
    """ResNet-38 at stride 8: 105 million parameters.

    | stage | blocks            | features                                     | the papers' name |
    |-------|-------------------|----------------------------------------------|------------------|
    | 1     | `conv1a`, `b2…`   | 128 channels at stride 2                     |                  |
    | 2     | `b3…`             | 256 channels at stride 4                     | conv3            |
    | 3     | `b4…`             | 512 channels at stride 8                     | conv4            |
    | 4     | `b5…`             | 1024 channels at stride 8                    | conv5            |
    | 5     | `b6`, `b7`, `bn7` | 4096 channels at stride 8                    | conv6            |

    Features are activated: after the batch normalisation and ReLU that the next stage begins with, or `bn7`. All
    batch normalisation is fixed, with its scale and shift. The papers freeze stage 1.
    """

    def __init__(self, output_stride: int = 8, dilated: bool = True) -> None:
        require_stride_8("resnet38", output_stride, dilated)
        super().__init__(CHANNELS, [StagePlan(1, 1, 1, stride) for stride in STRIDES])
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self._add_blocks("b2", 3, 64, 128, 128, stride=2)
        self._add_blocks("b3", 3, 128, 256, 256, stride=2)
        self._add_blocks("b4", 6, 256, 512, 512, stride=2)
        self._add_blocks("b5", 3, 512, 512, 1024, dilation=2)
        self.b6 = Bottleneck(1024, 2048, dilation=4, dropout=0.3)
        self.b7 = Bottleneck(2048, 4096, dilation=4, dropout=0.5)
        self.bn7 = FixedBatchNorm2d(4096)
        self._initialise()
        self.freeze(0)

    def _add_blocks(
        self, name: str, count: int, in_channels: int, width: int, out_channels: int, stride: int = 1, dilation: int = 1
    ) -> None:
        """Blocks `name`, `name_1`, …; the first changes the shape, and its first convolution is not dilated."""
        self.add_module(name, BasicBlock(in_channels, width, out_channels, stride, 1, dilation))
        for index in range(1, count):
            self.add_module(f"{name}_{index}", BasicBlock(out_channels, width, out_channels, 1, dilation, dilation))

    def _initialise(self) -> None:
        """Branches start at 0: without statistics of the batch, the sum of many random ones would grow and grow."""
        initialise(self)
        for block in self.modules():
            if isinstance(block, BasicBlock):
                nn.init.zeros_(block.conv_branch2b1.weight)

    def blocks(self) -> list[list[Block]]:
        """The blocks of each of the five stages, in the order in which they run."""
        blocks = [(name, module) for name, module in self.named_children() if isinstance(module, Block)]
        return [[block for name, block in blocks if name[:2] in stage] for stage in BLOCKS]

    def reading(self, stage: int) -> list[nn.Conv2d]:
        first = self.blocks()[stage][0]
        assert first.conv_branch1 is not None
        return [first.conv_branch2a, first.conv_branch1]

    def stages(self) -> list[list[nn.Module]]:
        first, second, third, fourth, last = self.blocks()
        return [[self.conv1a, *first], [*second], [*third], [*fourth], [*last, self.bn7]]

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.blocks()
        # A stage ends with the normalisation that the next one begins with.
        ends = [blocks[0].bn_branch2a for blocks in stages[1:]] + [self.bn7]
        features: list[Tensor] = []
        x = images.contiguous(memory_format=torch.channels_last)
        with self.recording(stage=1):
            x = activate(stages[0][0].bn_branch2a, self.conv1a(x))
        for number, ((first, *rest), end) in enumerate(zip(stages, ends, strict=True), start=1):
            with self.recording(number):
                x = first.project(x)
                for block in rest:
                    x = block(x)
                x = activate(end, x)
            features.append(x)
        return features

    def freeze(self, stages: int) -> None:
        super().freeze(stages)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
