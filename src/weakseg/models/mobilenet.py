"""MobileNetV2 with fixed batch normalisation and torchvision's names of the state.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018
(arXiv 1801.04381).
"""

from __future__ import annotations

from torch import Tensor, nn

from weakseg.models.norm import FixedBatchNorm2d, closing_norm, initialise
from weakseg.models.stages import StagedBackbone, plan_stages

# The rows of inverted residuals of Table 2 by stage: (expansion, channels, blocks).
STAGES = [
    [(1, 16, 1)],
    [(6, 24, 2)],
    [(6, 32, 3)],
    [(6, 64, 4), (6, 96, 3)],
    [(6, 160, 3), (6, 320, 1)],
]


def _conv_norm_relu6(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False),
        FixedBatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1×1 expansion, 3×3 depthwise convolution, linear 1×1 projection; the input is added where shapes agree
    (section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and in_channels == out_channels
        hidden = in_channels * expansion
        expand = [_conv_norm_relu6(in_channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu6(hidden, hidden, 3, stride, dilation, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            closing_norm(out_channels) if self.shortcut else FixedBatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(StagedBackbone):
    """MobileNetV2 of width 1.0 with its last 1×1 convolution, dilated to reach `output_stride` (8, 16 or 32).

    Channels 16, 24, 32, 96, 1280; 2.2 million parameters. A stage ends before the next convolution with a stride.
    `dilated=False` removes the stride of late blocks but does not dilate them, see `plan_stages`.
    """

    def __init__(self, output_stride: int = 16, dilated: bool = True) -> None:
        plans = plan_stages(output_stride, dilated)
        super().__init__((16, 24, 32, 96, 1280), plans)
        plans[0] = plans[0]._replace(stride=1)  # the first convolution has taken the stride of stage 1
        layers: list[nn.Module] = [_conv_norm_relu6(3, 32, 3, stride=2)]
        channels = 32
        self._ends: list[int] = []
        for plan, rows in zip(plans, STAGES, strict=True):
            stride, dilation = plan.stride, plan.first_dilation
            for expansion, out_channels, blocks in rows:
                for _ in range(blocks):
                    layers.append(InvertedResidual(channels, out_channels, expansion, stride, dilation))
                    channels, stride, dilation = out_channels, 1, plan.dilation
            self._ends.append(len(layers))
        layers.append(_conv_norm_relu6(channels, 1280, 1))
        self._ends[-1] += 1
        self.features = nn.Sequential(*layers)
        initialise(self)

    def reading(self, stage: int) -> list[nn.Conv2d]:
        first = self.features[self._ends[stage - 1]]
        assert isinstance(first, InvertedResidual) and not first.shortcut
        return [next(module for module in first.modules() if isinstance(module, nn.Conv2d))]

    def stages(self) -> list[list[nn.Module]]:
        layers = list(self.features)
        return [layers[start:end] for start, end in zip([0, *self._ends], self._ends, strict=False)]
