"""ResNet v1.5 with fixed batch normalisation and torchvision's names of the state.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385). "v1.5" has the
stride of a bottleneck in its 3×3 convolution; torchvision's weights are of this kind.
"""

from __future__ import annotations

from torch import Tensor, nn

from weakseg.models.norm import FixedBatchNorm2d, closing_norm, initialise
from weakseg.models.stages import StagedBackbone, StagePlan, plan_stages


def _conv3x3(in_channels: int, out_channels: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class _Block(nn.Module):
    """relu(F(x) + x), with x projected by `downsample` where F changes the shape (section 3.2, eq. 1 and 2)."""

    expansion: int

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        out_channels = width * self.expansion
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(_conv1x1(in_channels, out_channels, stride), FixedBatchNorm2d(out_channels))

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.residual(x) + shortcut)


class BasicBlock(_Block):
    """Two 3×3 convolutions (ResNet-18)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__(in_channels, width, stride)
        self.conv1 = _conv3x3(in_channels, width, stride, first_dilation)
        self.bn1 = FixedBatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, dilation)
        self.bn2 = closing_norm(width)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class Bottleneck(_Block):
    """1×1, 3×3, 1×1 convolutions, the last four times as wide (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, first_dilation: int, dilation: int) -> None:
        super().__init__(in_channels, width, stride)
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = FixedBatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, first_dilation)
        self.bn2 = FixedBatchNorm2d(width)
        self.conv3 = _conv1x1(width, width * self.expansion)
        self.bn3 = closing_norm(width * self.expansion)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(StagedBackbone):
    """ResNet of the given blocks per layer, its last layers dilated to reach `output_stride` (8, 16 or 32).

    Stage 1 is the stem at stride 2, stage 2 the max-pooling and layer1, stages 3 … 5 are layer2 … layer4.
    `dilated=False` removes the stride of late layers but does not dilate them, see `plan_stages`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        output_stride: int = 16,
        dilated: bool = True,
    ) -> None:
        plans = plan_stages(output_stride, dilated)
        widths = (64, 128, 256, 512)
        out1, out2, out3, out4 = (width * block.expansion for width in widths)
        super().__init__((64, out1, out2, out3, out4), plans)
        self.conv1: nn.Module = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = FixedBatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        # The max-pooling has taken the stride of stage 2.
        self.layer1 = _layer(block, 64, widths[0], blocks[0], plans[1]._replace(stride=1))
        self.layer2 = _layer(block, out1, widths[1], blocks[1], plans[2])
        self.layer3 = _layer(block, out2, widths[2], blocks[2], plans[3])
        self.layer4 = _layer(block, out3, widths[3], blocks[3], plans[4])
        initialise(self)

    def reading(self, stage: int) -> list[nn.Conv2d]:
        first = (self.layer1, self.layer2, self.layer3, self.layer4)[stage - 1][0]
        assert isinstance(first, BasicBlock | Bottleneck)
        shortcut = [] if first.downsample is None else [first.downsample[0]]
        return [first.conv1, *(conv for conv in shortcut if isinstance(conv, nn.Conv2d))]

    def stages(self) -> list[list[nn.Module]]:
        return [
            [self.conv1, self.bn1, self.relu],
            [self.maxpool, self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]


class DeepStemResNet(ResNet):
    """ResNet of bottlenecks whose stem is three 3×3 convolutions, the first at stride 2, with 128 channels in the end.

    Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017 (arXiv 1612.01105), the authors' program.
    """

    def __init__(
        self, output_stride: int = 8, dilated: bool = True, blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    ) -> None:
        super().__init__(Bottleneck, blocks, output_stride, dilated)
        self.channels = (128, *self.channels[1:])
        self.conv1 = nn.Sequential(
            _conv3x3(3, 64, 2, 1),
            FixedBatchNorm2d(64),
            nn.ReLU(inplace=True),
            _conv3x3(64, 64, 1, 1),
            FixedBatchNorm2d(64),
            nn.ReLU(inplace=True),
            _conv3x3(64, 128, 1, 1),
        )
        self.bn1 = FixedBatchNorm2d(128)
        self.layer1[0] = Bottleneck(128, 64, 1, 1, 1)
        initialise(self)


def _layer(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, blocks: int, plan: StagePlan
) -> nn.Sequential:
    out_channels = width * block.expansion
    first = block(in_channels, width, plan.stride, plan.first_dilation, plan.dilation)
    rest = [block(out_channels, width, 1, plan.dilation, plan.dilation) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def resnet18(output_stride: int = 16, dilated: bool = True) -> ResNet:
    """ResNet-18: channels 64, 64, 128, 256, 512; 11.2 million parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), output_stride, dilated)


def resnet50(output_stride: int = 16, dilated: bool = True) -> ResNet:
    """ResNet-50: channels 64, 256, 512, 1024, 2048; 23.5 million parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), output_stride, dilated)


def resnet101(output_stride: int = 16, dilated: bool = True) -> ResNet:
    """ResNet-101: channels as ResNet-50; 42.5 million parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), output_stride, dilated)


def resnet101_deep_stem(output_stride: int = 8, dilated: bool = True) -> DeepStemResNet:
    """ResNet-101 with a stem of three convolutions: channels 128, 256, 512, 1024, 2048; 42.6 million parameters."""
    return DeepStemResNet(output_stride, dilated)
