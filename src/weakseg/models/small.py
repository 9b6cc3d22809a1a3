"""A small residual network that learns from scratch in a minute on a CPU; made for the toy data and for tests."""

from __future__ import annotations

from torch import Tensor, nn

from weakseg.models.norm import initialise
from weakseg.models.stages import StagedBackbone, StagePlan, plan_stages

CHANNELS = (16, 32, 64, 96, 128)
CHANNELS_PER_GROUP = 16


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018): it looks at one image at a time, so the result for an image depends
    neither on the rest of the batch nor on the number of processes."""
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a 1×1 shortcut (He et al. 2016, "Deep residual learning", figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, plan: StagePlan) -> None:
        super().__init__()
        first, second = plan.first_dilation, plan.dilation
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, plan.stride, first, first, bias=False)
        self.norm1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, second, second, bias=False)
        self.norm2 = _norm(out_channels)
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, plan.stride, bias=False), _norm(out_channels)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        residual = self.relu(self.norm1(self.conv1(features)))
        return self.relu(self.shortcut(features) + self.norm2(self.conv2(residual)))


class SmallResNet(StagedBackbone):
    """A stem and four residual blocks, 1.2 million weights. `output_stride` is 8, 16 or 32."""

    def __init__(self, output_stride: int = 8) -> None:
        plans = plan_stages(output_stride, dilated=True)
        super().__init__(CHANNELS, plans)
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS[0], 3, 2, 1, bias=False), _norm(CHANNELS[0]), nn.ReLU(inplace=True)
        )
        self.blocks = nn.ModuleList(
            ResidualBlock(CHANNELS[stage - 1], CHANNELS[stage], plans[stage]) for stage in range(1, 5)
        )
        initialise(self)

    def stages(self) -> list[list[nn.Module]]:
        return [[self.stem], *([block] for block in self.blocks)]
