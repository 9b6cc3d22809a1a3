"""VGG-16 at stride 8, its fully connected layers as convolutions, with Caffe's names of the layers.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015
(arXiv 1409.1556), reduced and dilated by Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and
Fully Connected CRFs", ICLR 2015 (arXiv 1412.7062, section 3.1); their `vgg16_20M.caffemodel` holds the weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from weakseg.models.caffe_input import CaffeInput, GreyInput
from weakseg.models.norm import initialise
from weakseg.models.stages import StagedBackbone, StagePlan, require_stride_8

CHANNELS = (128, 256, 512, 512, 1024)
STRIDES = (2, 4, 8, 8, 8)


class VGG16(StagedBackbone):
    """VGG-16 of 20.5 million parameters, without batch normalisation.

    | stage | layers                    | features                  | AffinityNet's name |
    |-------|---------------------------|---------------------------|--------------------|
    | 1     | `conv1_*`, pool, `conv2_*`| 128 channels at stride 2  |                    |
    | 2     | pool, `conv3_*`           | 256 channels at stride 4  |                    |
    | 3     | pool, `conv4_*`           | 512 channels at stride 8  | conv4              |
    | 4     | pool, `conv5_*`           | 512 channels at stride 8  | conv5              |
    | 5     | `fc6`, `fc7`              | 1024 channels at stride 8 | conv5fc            |

    The form is that of AffinityNet's classifier: 3×3 pooling with padding, of stride 1 before `conv5_*` and none
    after, dropout of channels between `fc6` and `fc7`. The papers freeze stage 1.
    """

    name = "vgg16"
    fc6_dilation = 1

    def __init__(self, output_stride: int = 8, dilated: bool = True) -> None:
        require_stride_8(self.name, output_stride, dilated)
        super().__init__(CHANNELS, [StagePlan(1, 1, 1, stride) for stride in STRIDES])
        self.caffe_input: nn.Module = CaffeInput()
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.pool4 = nn.MaxPool2d(3, stride=1, padding=1)
        in_channels = 3
        for block, (layers, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], start=1):
            dilation = 2 if block == 5 else 1
            for layer in range(1, layers + 1):
                convolution = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)
                self.add_module(f"conv{block}_{layer}", convolution)
                in_channels = channels
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=self.fc6_dilation, dilation=self.fc6_dilation)
        self.drop6 = self.dropout()
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        initialise(self)

    def dropout(self) -> nn.Module:
        """What stands between `fc6` and `fc7`."""
        return nn.Dropout2d(0.5)

    def context(self) -> list[nn.Module]:
        """What stands between `conv5_*` and `fc6`."""
        return []

    def reading(self, stage: int) -> list[nn.Conv2d]:
        layer = self.get_submodule(("conv3_1", "conv4_1", "conv5_1", "fc6")[stage - 1])
        assert isinstance(layer, nn.Conv2d)
        return [layer]

    def stages(self) -> list[list[nn.Module]]:
        fc = [self.fc6, self.relu, self.drop6, self.fc7, self.relu]
        return [
            [*self._block(1), self.pool, *self._block(2)],
            [self.pool, *self._block(3)],
            [self.pool, *self._block(4)],
            [self.pool4, *self._block(5)],
            [*self.context(), *fc],
        ]

    def _block(self, number: int) -> list[nn.Module]:
        layers = [layer for name, layer in self.named_children() if name.startswith(f"conv{number}_")]
        return [module for layer in layers for module in (layer, self.relu)]

    def forward(self, images: Tensor) -> list[Tensor]:
        return super().forward(self.caffe_input(images))


class VGG16Affinity(VGG16):
    """The form of AffinityNet's affinity network: `fc6` has dilation 4."""

    name = "vgg16_affinity"
    fc6_dilation = 4


class VGG16LargeFOV(VGG16):
    """The form of DeepLab v1: a large field of view by dilation 12 in `fc6`, two more poolings of stride 1 before it,
    and dropout of single values (Chen et al. 2015, section 3.2 and "DeepLab-LargeFOV" in 4.1)."""

    name = "vgg16_largefov"
    fc6_dilation = 12

    def __init__(self, output_stride: int = 8, dilated: bool = True) -> None:
        super().__init__(output_stride, dilated)
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1)

    def dropout(self) -> nn.Module:
        return nn.Dropout(0.5)

    def context(self) -> list[nn.Module]:
        return [self.pool4, self.pool5a]


class VGG16ICD(VGG16LargeFOV):
    """The form of ICD (Fan et al., CVPR 2020): `fc6` without dilation, and images in RGB less 127 in every channel."""

    name = "vgg16_icd"
    fc6_dilation = 1

    def __init__(self, output_stride: int = 8, dilated: bool = True) -> None:
        super().__init__(output_stride, dilated)
        self.caffe_input = GreyInput()
