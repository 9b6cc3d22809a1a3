"""A small residual network that learns from scratch in minutes on a CPU; made for the toy data and for tests."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.models.norm import initialise
from weakseg.models.stages import StagedBackbone, StagePlan, plan_stages

CHANNELS = (16, 32, 64, 96, 128)
CHANNELS_PER_GROUP = 8
FEATURE_GAIN = 0.2


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He, ECCV 2018). It looks at one image at a time: the result for an image depends
    neither on the rest of the batch nor on the number of processes."""
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a 1×1 shortcut (He et al., CVPR 2016, figure 2).

    The shortcut is normalised like the residual, so the scale of no weight matters, and large steps are stable.
    """

    def __init__(self, in_channels: int, out_channels: int, plan: StagePlan) -> None:
        super().__init__()
        first, second = plan.first_dilation, plan.dilation
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, plan.stride, first, first, bias=False)
        self.norm1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, second, second, bias=False)
        self.norm2 = _norm(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, plan.stride, bias=False)
        self.shortcut_norm = _norm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(residual)) + self.shortcut_norm(self.shortcut(features)))


class SmallResNet(StagedBackbone):
    """A convolution and four residual blocks, half a million weights; `output_stride` is 8, 16 or 32.

    The features of the last stage start small. A classifier on normalised features of many channels, let alone one
    of many taps such as ASPP, has a large curvature and would bear only a fraction of the rate at which the network
    itself learns; here both bear the same rate, and the classifier of CAM ten times as much.
    """

    def __init__(self, output_stride: int = 8) -> None:
        plans = plan_stages(output_stride, dilated=True)
        super().__init__(CHANNELS, plans)
        self.conv = nn.Conv2d(3, CHANNELS[0], 3, 2, 1, bias=False)
        self.norm = _norm(CHANNELS[0])
        self.block2, self.block3, self.block4, self.block5 = (
            ResidualBlock(CHANNELS[k - 1], CHANNELS[k], plans[k]) for k in range(1, 5)
        )
        initialise(self)
        for norm in (self.block5.norm2, self.block5.shortcut_norm):
            nn.init.constant_(norm.weight, FEATURE_GAIN)

    def reading(self, stage: int) -> list[nn.Conv2d]:
        block = (self.block2, self.block3, self.block4, self.block5)[stage - 1]
        return [block.conv1, block.shortcut]

    def stages(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [self.conv, self.norm, nn.ReLU(inplace=True)]
        return [stem, [self.block2], [self.block3], [self.block4], [self.block5]]
