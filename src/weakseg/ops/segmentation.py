"""Class probabilities of an image from a segmenter, over several scales and the mirror image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.ops.activation import normalise_image, resize_image


def multi_scale_probabilities(
    logits: Callable[[Tensor], Tensor],
    image: npt.NDArray[np.uint8],
    scales: Sequence[float] = (1.0,),
    *,
    mirror: bool = False,
    device: torch.device | str = "cpu",
) -> npt.NDArray[np.float32]:
    """Probabilities (K, H, W) of an image (H, W, 3): the softmax of the mean of the logits of all views.

    The views are the image at all `scales` and, with `mirror`, their mirror images. Each view's logits are resized
    to the image (bilinear, align_corners=False) before the mean (as SEAM's DeepLab does, Wang et al. 2020,
    arXiv 2004.04581). `logits` takes normalised images (N, 3, h, w) to scores (N, K, any, any); its network
    should be in evaluation mode and on `device`.
    """
    height, width = image.shape[:2]
    with torch.inference_mode():
        total = torch.zeros((), device=device)
        for scale in scales:
            views = torch.from_numpy(normalise_image(resize_image(image, scale)))[None].to(device)
            if mirror:
                views = torch.cat([views, views.flip(3)])
            scores = logits(views).float()
            if mirror:
                # Mirroring and resizing commute, so both views need only one resizing.
                scores = (scores[:1] + scores[1:].flip(3)) / 2
            total = total + F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
        return torch.softmax(total[0] / len(scales), dim=0).cpu().numpy()
