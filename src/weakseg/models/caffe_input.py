"""The input of networks that were trained in Caffe, or in MXNet after Caffe's manner."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weakseg.ops.activation import GREY, IMAGENET_MEAN, IMAGENET_STD

CAFFE_MEAN_BGR = (104.008, 116.669, 122.675)


class CaffeInput(nn.Module):
    """Images as every backbone takes them (N, 3, H, W) to what Caffe's weights expect: blue, green, red in [0, 255]
    less the mean.

    This cannot be folded into the first convolution: it pads with zeros, and zero is another colour in the two.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        # (x · std + mean) · 255 - caffe_mean, kept as one scale and one shift per channel in the order B, G, R.
        scale = torch.tensor(255 * IMAGENET_STD[::-1].astype(float))
        shift = torch.tensor(255 * IMAGENET_MEAN[::-1].astype(float)) - torch.tensor(CAFFE_MEAN_BGR)
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1) * self.scale + self.shift


class GreyInput(nn.Module):
    """Images as every backbone takes them (N, 3, H, W) to red, green, blue in [0, 255] less 127, as ICD has it."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        scale = torch.tensor(255 * IMAGENET_STD.astype(float))
        shift = torch.tensor(255 * IMAGENET_MEAN.astype(float)) - GREY
        self.register_buffer("scale", scale.float()[:, None, None], persistent=False)
        self.register_buffer("shift", shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift
