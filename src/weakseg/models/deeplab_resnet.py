"""The dilated ResNet-101 of the DeepLab authors' Caffe weights, with the names of its widespread PyTorch conversion.

Chen et al., "DeepLab", TPAMI 2018 (arXiv 1606.00915), section 4. It differs from `resnet101` in the stride of a
bottleneck, which is in the first 1×1 convolution, in the max-pooling, which rounds sizes up, and in its input.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.models.caffe_input import CaffeInput
from weakseg.models.norm import FixedBatchNorm2d, initialise
from weakseg.models.stages import StagedBackbone, StagePlan, plan_stages

CHANNELS = (64, 256, 512, 1024, 2048)


class ConvNorm(nn.Module):
    """A convolution without bias and fixed batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)
        self.bn = FixedBatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Bottleneck(nn.Module):
    """relu(increase(conv3x3(reduce(x))) + x), x projected by `shortcut` in the first block of a stage."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.reduce = ConvNorm(in_channels, width, 1, stride)
        self.conv3x3 = ConvNorm(width, width, 3, dilation=dilation)
        self.increase = ConvNorm(width, out_channels, 1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.reduce(x), inplace=True)
        residual = F.relu(self.conv3x3(residual), inplace=True)
        return F.relu(self.increase(residual) + self.shortcut(x), inplace=True)


class Stem(nn.Sequential):
    """7×7 convolution of stride 2 and max-pooling of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, CHANNELS[0], 7, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)


class DeepLabResNet(StagedBackbone):
    """ResNet of the given blocks in its last four stages, `layer2` … `layer5`; 42.5 million parameters for 3/4/23/3.

    `multi_grid` multiplies the dilation of the blocks of the last stage, as DeepLab v3 does (Chen et al. 2017, section
    3.2.1).

    Stage 1 is the stem without its pooling, as in `ResNet`. The pooling rounds up: from stage 2 on, features may
    have one row and column more than ceil(size / stride). Images come in as for every backbone and are turned
    into what the weights expect: blue, green, red in [0, 255] less the mean.
    """

    caffe_scale: Tensor
    caffe_shift: Tensor

    def __init__(
        self,
        output_stride: int = 8,
        dilated: bool = True,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
        multi_grid: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        plans = plan_stages(output_stride, dilated)
        super().__init__(CHANNELS, plans)
        self.layer1 = Stem()
        # The max-pooling has taken the stride of stage 2.
        self.layer2 = _layer(CHANNELS[0], CHANNELS[1], blocks[0], plans[1]._replace(stride=1))
        self.layer3 = _layer(CHANNELS[1], CHANNELS[2], blocks[1], plans[2])
        self.layer4 = _layer(CHANNELS[2], CHANNELS[3], blocks[2], plans[3])
        self.layer5 = _layer(CHANNELS[3], CHANNELS[4], blocks[3], plans[4], multi_grid)
        initialise(self)
        self.caffe_input = CaffeInput()

    def reading(self, stage: int) -> list[nn.Conv2d]:
        first = (self.layer2, self.layer3, self.layer4, self.layer5)[stage - 1][0]
        assert isinstance(first, Bottleneck) and isinstance(first.shortcut, ConvNorm)
        return [first.reduce.conv, first.shortcut.conv]

    def stages(self) -> list[list[nn.Module]]:
        return [
            [self.layer1.conv1, self.layer1.relu],
            [self.layer1.pool, self.layer2],
            [self.layer3],
            [self.layer4],
            [self.layer5],
        ]

    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(self.caffe_input(images))


def multi_grid_resnet101(output_stride: int = 16, dilated: bool = True) -> DeepLabResNet:
    """The ResNet-101 of DeepLab v3: the dilation of the last three blocks grows 1 : 2 : 4."""
    return DeepLabResNet(output_stride, dilated, multi_grid=(1, 2, 4))


def _layer(
    in_channels: int, out_channels: int, blocks: int, plan: StagePlan, grid: tuple[int, int, int] = (1, 1, 1)
) -> nn.Sequential:
    """A stage whose blocks, the first among them, all have the same dilation, apart from `grid`."""
    layer = nn.Sequential()
    for index in range(blocks):
        first = index == 0
        block = Bottleneck(
            in_channels if first else out_channels,
            out_channels,
            plan.stride if first else 1,
            plan.dilation * grid[index % len(grid)],
        )
        layer.add_module(f"block{index + 1}", block)
    return layer
