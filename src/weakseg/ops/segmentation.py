"""Class probabilities of images from a segmenter, over several scales and the mirror image."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.ops.activation import Network, Views, network_outputs


def multi_scale_probabilities(
    logits: Network, views: Views, device: torch.device | str = "cpu", *, mirror: bool = False
) -> Iterator[Tensor]:
    """Probabilities (K, H, W) of each image, on `device`: the softmax of the mean of the logits of all its views.

    With `mirror`, the views are those given and their mirror images. Each view's logits are resized to the image
    (bilinear, align_corners=False) before the mean (as SEAM's DeepLab does, Wang et al. 2020, arXiv 2004.04581).
    `logits` gives scores (n, K, any, any); its network should be in evaluation mode and on `device`.
    """
    # Mirroring and resizing commute, so both views need only one resizing.
    scores = [network_outputs(logits, images, device, mirror=mirror, views=views) for images in views.scaled]
    count = len(scores) * (2 if mirror else 1)
    for of_image in zip(*scores, strict=True):  # one image at a time: at full size, all classes take much memory
        with torch.inference_mode():
            total: Tensor | None = None
            for small in of_image:
                view = F.interpolate(small[None], views.size, mode="bilinear", align_corners=False)[0]
                total = view if total is None else total.add_(view)
            assert total is not None
            probabilities = torch.softmax(total.div_(count), dim=0)
        yield probabilities
