"""DeepLab v3 and v3+: atrous spatial pyramid pooling with the whole image's feature, and a small decoder.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587);
Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018 (arXiv 1802.02611), here with ordinary convolutions.

With features f(x) of an image x, each * followed by batch normalisation and ReLU (v3, figure 5):

    p(x) = w_1 * [ w_c0 * f,  w_c1 *_r1 f,  w_c2 *_r2 f,  w_c3 *_r3 f,  w_pool * mean over h, w of f ]
    v3:    s(x) = w_2 · p(x)
    v3+:   s(x) = w_4 · (w_3 * (w_2 * [ p(x) enlarged,  w_low * f_2(x) ])),   f_2 are the features at stride 4
    L    = - mean over pixels p that are not void of log softmax(s_p(x))[y_p]
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.methods import base
from weakseg.methods.crossentropy import Place, cross_entropy, labelled_pixels
from weakseg.models.deeplab_resnet import ConvNorm
from weakseg.models.norm import initialise
from weakseg.models.registry import BackboneSettings, build_backbone

WIDTH = 256
LOW_WIDTH = 48


class DeepLabV3(base.Segmenter):
    """A backbone, the pyramid and, for v3+, the decoder. `num_classes` is C, without the background.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """The pyramid has dilated convolutions of `rates`: the paper's are (6, 12, 18) at stride 16 and (12, 24, 36)
        at stride 8. The head learns `head_lr_factor` times as fast as the backbone. All batch normalisation has fixed
        statistics. `loss_at` says whether labels come down to the scores ("output") or scores up to the labels
        ("image").
        """

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet50", output_stride=16),
            description="the network whose features are used",
        )
        rates: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
            default=(6, 12, 18), description="dilation of the pyramid's convolutions, cells"
        )
        decoder: bool = Field(default=True, description="true: v3+, false: v3")
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")
        loss_at: Place = Field(
            default="image",
            description="whether labels come down to the scores (nearest, or majority) or scores up to the labels",
        )

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        self.aspp = Pyramid(self.backbone.channels[-1], settings.rates)
        self.fc1 = ConvNorm((len(settings.rates) + 2) * WIDTH, WIDTH, 1)
        self.fc2: nn.Module = nn.Conv2d(WIDTH, 1 + num_classes, 1)
        if settings.decoder:
            self.reduce = ConvNorm(self.backbone.channels[1], LOW_WIDTH, 1)
            self.fc2 = Decoder(WIDTH + LOW_WIDTH, 1 + num_classes)
        for part in self._head():
            initialise(part)

    def _head(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name != "backbone"]

    def logits(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to scores (N, 1 + C, H, W) or, without decoder, (N, 1 + C, h, w) at the
        stride of the backbone."""
        images = batch["image"]
        _, low, *_, high = self.backbone(images)
        deep = F.relu(self.fc1(self.aspp(high)))
        if not self.settings.decoder:
            return self.fc2(deep)
        low = F.relu(self.reduce(low))
        scores = self.fc2(torch.cat([_resized(deep, low.shape[-2:]), low], 1))
        return _resized(scores, images.shape[-2:])

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """Cross entropy, summed over the pixels with a label.

        Raises `WeaksegError` for labels that are neither 0 … C nor void.
        """
        return {"segmentation": cross_entropy(self.logits(batch), batch["labels"], self.settings.loss_at)}

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """The pixels with a label, where scores and labels meet."""
        labels = batch["labels"]
        size = labels.shape[-2:] if self.settings.decoder else self.backbone.output_size(labels.shape[-2:])
        return {"segmentation": labelled_pixels(labels, size, self.settings.loss_at)}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The backbone, and the head at `head_lr_factor` times its rate."""
        head = [parameter for part in self._head() for parameter in part.parameters()]
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr": lr},
            {"params": head, "lr": lr * self.settings.head_lr_factor},
        ]


class Pyramid(nn.Module):
    """1×1 and dilated 3×3 convolutions and the whole image's feature side by side: (N, C, h, w) to
    (N, (2 + rates) · 256, h, w)."""

    def __init__(self, in_channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.Module()
        self.stages.add_module("c0", ConvNorm(in_channels, WIDTH, 1))
        for number, rate in enumerate(rates, start=1):
            self.stages.add_module(f"c{number}", ConvNorm(in_channels, WIDTH, 3, dilation=rate))
        self.stages.add_module("imagepool", ImagePool(in_channels))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([F.relu(stage(features)) for stage in self.stages.children()], 1)


class ImagePool(nn.Module):
    """The mean over the image, convolved and put back at every place."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[-2:])


class Decoder(nn.Module):
    """Two 3×3 convolutions and the classifier of v3+."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, WIDTH, 3)
        self.conv2 = ConvNorm(WIDTH, WIDTH, 3)
        self.conv3 = nn.Conv2d(WIDTH, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(features)))))


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


SEGMENTER = DeepLabV3
