"""ICD's refinement by superpixels: sums over places against products with the one-hot map.

    python benchmarks/icd_superpixels.py [--size 321 321] [--repeats 5] [--threads 1]

A batch of 16 images with 66 superpixels each, one to three of 20 classes present, cells of 8 pixels. The other side
makes the one-hot map at the size of the image and resizes it, as the original does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

import measure
from weakseg.methods.icd import refined

IMAGES, CLASSES, SUPERPIXELS, STRIDE = 16, 20, 66, 8


def one_hot_refined(scores: Tensor, tags: Tensor, superpixels: Tensor) -> Tensor:
    one_hot = torch.zeros(len(scores), SUPERPIXELS, *superpixels.shape[1:])
    one_hot.scatter_(1, superpixels[:, None], 1.0)
    member = F.interpolate(one_hot, scores.shape[2:], mode="bilinear", align_corners=True).flatten(2)
    mean = member / member.sum(2, keepdim=True).clamp(min=1e-5)
    v = (scores * tags[:, :, None, None]).flatten(2)
    positive, negative = v.clamp(min=0), v.clamp(max=0)
    mostly = (member @ v.sign().mT).amax(2, keepdim=True) > 1e-5
    winner = (mean @ (positive / positive.amax(1, keepdim=True).clamp(min=1e-5)).mT).argmax(2)
    won = F.one_hot(winner, CLASSES) * mostly * tags[:, None]
    value = won * (mean @ positive.mT) + (1 - won) * (mean @ negative.mT)
    return (value.mT @ member).reshape(scores.shape)


def prepare(size: measure.Size) -> dict[str, measure.Comparison]:
    generator = torch.Generator().manual_seed(0)
    height, width = ((side - 1) * STRIDE + 1 for side in size)
    scores = torch.randn(IMAGES, CLASSES, *size, generator=generator)
    tags = (torch.rand(IMAGES, CLASSES, generator=generator) < 0.1).float()
    tags[torch.arange(IMAGES), torch.arange(IMAGES) % CLASSES] = 1
    coarse = torch.randint(SUPERPIXELS, (IMAGES, 1, 12, 12), generator=generator).float()
    superpixels = F.interpolate(coarse, (height, width))[:, 0].long()
    ours, dense = (lambda: refined(scores, tags, superpixels)), (lambda: one_hot_refined(scores, tags, superpixels))
    return {"refinement of a batch": measure.Comparison(ours, dense, target=1, memory_target=10)}


if __name__ == "__main__":
    measure.main(__doc__, prepare, stride=STRIDE, tolerance=1e-4, size=(321, 321))
