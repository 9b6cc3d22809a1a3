"""Atrous spatial pyramid pooling, the classifier of DeepLab v2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ASPP(nn.Module):
    """The sum of parallel 3×3 classifiers of different dilation: features (N, C, h, w) to scores (N, K, h, w).

    Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
    Connected CRFs", TPAMI 2018 (arXiv 1606.00915), section 3.2 and figure 7. State: `c0`, `c1`, … with a weight
    (K, C, 3, 3) and a bias (K,) for each of the `rates`.
    """

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        for index, rate in enumerate(rates):
            classifier = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)
            assert classifier.bias is not None
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)
            self.add_module(f"c{index}", classifier)

    def classifiers(self) -> Iterator[nn.Conv2d]:
        """The dilated classifiers in the order of their rates."""
        for module in self.children():
            assert isinstance(module, nn.Conv2d)
            yield module

    def forward(self, features: Tensor) -> Tensor:
        """Everything here is linear, so all taps of all classifiers are one 1×1 convolution whose results are
        shifted and added. It costs a fraction of dilated convolutions of so many channels on a CPU; taps that only
        ever meet the zeros outside the map are left out, and the four central taps are one."""
        taps: dict[tuple[int, int], Tensor] = {}
        for classifier in self.classifiers():
            for (dy, dx), weight in _taps(classifier):
                if abs(dy) < features.shape[2] and abs(dx) < features.shape[3]:
                    taps[dy, dx] = taps[dy, dx] + weight if (dy, dx) in taps else weight
        responses = F.conv2d(features, torch.cat(list(taps.values()))[..., None, None])
        # Not the sum of a stack: it would give all biases one gradient in one memory, which is then added to and
        # clipped once for each of them.
        biases = [classifier.bias for classifier in self.classifiers() if classifier.bias is not None]
        scores = sum(biases[1:], biases[0])[:, None, None]
        for (dy, dx), response in zip(taps, responses.chunk(len(taps), dim=1), strict=True):
            scores = scores + F.pad(response, (-dx, dx, -dy, dy))
        return scores


def _taps(classifier: nn.Conv2d) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """The offsets (dy, dx) in pixels that a 3×3 classifier looks at, and the weights (K, C) it has there."""
    rate = int(classifier.dilation[0])
    for row in range(3):
        for column in range(3):
            yield ((row - 1) * rate, (column - 1) * rate), classifier.weight[:, :, row, column]
