"""DeepLab v2: a dilated classification network as a segmenter, with atrous spatial pyramid pooling.

Chen, Papandreou, Kokkinos, Murphy, Yuille, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", TPAMI 2018 (arXiv 1606.00915).

With features f(x) of an image x at a stride of 8 pixels, one 3×3 classifier for each rate r (section 3.2), and the
label y_p at pixel p of the score map, void pixels V left out:

    s(x) = Σ_r w_r *_r f(x)                                        scores, *_r is convolution with dilation r
    L    = - mean over p ∉ V of log softmax(s_p(x))[y_p]

With multi-scale processing (section 4.1), s(x) is the maximum over the scores of x at the scales 1, ½ and ¾, and the
loss is the sum of the losses of the four score maps (Chen et al., "Attention to scale", CVPR 2016, section 3.3).

Published weights of DeepLab v2 started from a network trained on the *masks* of MS-COCO. In research on weak
labels that is extra supervision, so nothing here uses them unless a recipe names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.methods import base
from weakseg.methods.crossentropy import Place, cross_entropy, labelled_pixels
from weakseg.models.aspp import ASPP
from weakseg.models.norm import FixedBatchNorm2d
from weakseg.models.originals import read_caffe_deeplab
from weakseg.models.registry import BackboneSettings, build_backbone

PUBLISHED_PREFIX = "base."

T = TypeVar("T")
Size = tuple[int, ...]


class Pyramid(NamedTuple, Generic[T]):
    """Scores (N, 1 + C, h, w) of an image at three scales, each of its own size, and their maximum at the largest; or
    something of each."""

    full: T
    half: T
    three_quarters: T
    maximum: T


class DeepLab(base.Segmenter):
    """A backbone and ASPP. `num_classes` is C, without the background.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """ASPP has one classifier for each of `rates` and learns `head_lr_factor` times as fast as the backbone.

        `multi_scale` trains on, and predicts from, three scales of each image: 1.8 times the work. `loss_at` says
        whether labels come down to the scores ("output") or scores up to the labels ("image").
        """

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet101", output_stride=8),
            description="the network whose features are used",
        )
        rates: tuple[PositiveInt, ...] = Field(
            default=(6, 12, 18, 24), min_length=1, description="dilation of each of ASPP's classifiers, cells"
        )
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")
        multi_scale: bool = Field(default=False, description="train on and predict from three scales of each image")
        loss_at: Place = Field(
            default="output",
            description="whether labels come down to the scores (nearest, or majority) or scores up to the labels",
        )

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        if settings.backbone.weights is not None:
            _fix_normalisation(self.backbone)
        self.aspp = ASPP(self.backbone.channels[-1], 1 + num_classes, settings.rates)

    def logits(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to scores (N, 1 + C, h, w) at the stride of the backbone."""
        images = batch["image"]
        return self.pyramid(images).maximum if self.settings.multi_scale else self.scores(images)

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N, 1 + C, h, w) of the images as they are."""
        return self.aspp(self.backbone(images)[-1])

    def pyramid(self, images: Tensor) -> Pyramid[Tensor]:
        """Scores at the scales 1, 1/2 and 3/4, and their maximum."""
        full, half, three_quarters = (self.scores(_scaled(images, quarters)) for quarters in (4, 2, 3))
        size = full.shape[-2:]
        maximum = torch.stack([full, _resized(half, size), _resized(three_quarters, size)]).amax(0)
        return Pyramid(full, half, three_quarters, maximum)

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """Cross entropy of the scores, or of the score maps of all scales, summed over the pixels with a label.

        Raises `WeaksegError` for labels that are neither 0 … C nor void.
        """
        images, labels, place = batch["image"], batch["labels"], self.settings.loss_at
        if not self.settings.multi_scale:
            return {"segmentation": cross_entropy(self.scores(images), labels, place)}
        pyramid = self.pyramid(images)._asdict()
        return {f"segmentation_{name}": cross_entropy(scores, labels, place) for name, scores in pyramid.items()}

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """The pixels with a label, where each score map meets the labels."""
        labels, place = batch["labels"], self.settings.loss_at
        if not self.settings.multi_scale:
            return {"segmentation": labelled_pixels(labels, self.backbone.output_size(labels.shape[-2:]), place)}
        full, half, three_quarters = (self.backbone.output_size(_scaled_size(labels.shape[-2:], q)) for q in (4, 2, 3))
        sizes = Pyramid(full, half, three_quarters, full)._asdict()
        return {f"segmentation_{name}": labelled_pixels(labels, size, place) for name, size in sizes.items()}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The backbone, ASPP's weights, and its biases at twice their rate and without weight decay.

        The normalisation of a pretrained backbone is in no group.
        """
        head_lr = lr * self.settings.head_lr_factor
        classifiers = list(self.aspp.classifiers())
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr": lr},
            {"params": [classifier.weight for classifier in classifiers], "lr": head_lr},
            {"params": [classifier.bias for classifier in classifiers], "lr": 2 * head_lr, "weight_decay": 0.0},
        ]


def _fix_normalisation(backbone: nn.Module) -> None:
    """Keep the scale and the shift of pretrained batch normalisation as they are, like its statistics."""
    for module in backbone.modules():
        if isinstance(module, FixedBatchNorm2d):
            module.requires_grad_(False)


def _scaled(images: Tensor, quarters: int) -> Tensor:
    """Images at `quarters` / 4 of their size, rounded down but at least 1. Sizes are given rather than factors, so
    that the corners of all scales meet when sizes are not divisible by 4."""
    return images if quarters == 4 else _resized(images, _scaled_size(images.shape[-2:], quarters))


def _scaled_size(size: Size, quarters: int) -> Size:
    return tuple(max(1, side * quarters // 4) for side in size)


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def read_published(state: Mapping[str, Tensor]) -> base.Reading:
    """A `DeepLab` with `multi_scale` and the backbone "deeplab_resnet101" from a PyTorch checkpoint of DeepLab v2.

    Raises `WeaksegError` for names that such a file does not have.
    """
    own = {}
    for name, tensor in state.items():
        if not name.startswith((f"{PUBLISHED_PREFIX}layer", f"{PUBLISHED_PREFIX}aspp.")):
            raise WeaksegError(f"it has a tensor {name}")
        own[name.removeprefix(PUBLISHED_PREFIX)] = tensor
    return _reading(own)


def read_caffe(state: Mapping[str, Tensor]) -> base.Reading:
    """The same from the authors' Caffe model."""
    renamed = read_caffe_deeplab(state)
    return replace(_reading(renamed.state), ignored=renamed.ignored)


def _reading(state: Mapping[str, Tensor]) -> base.Reading:
    if "aspp.c0.bias" not in state:
        raise WeaksegError("it has no classifier aspp.c0")
    settings = DeepLab.Settings(
        backbone=BackboneSettings(name="deeplab_resnet101", output_stride=8, weights=None), multi_scale=True
    )
    own = {name if name.startswith("aspp.") else f"backbone.{name}": tensor for name, tensor in state.items()}
    return base.Reading(settings, len(state["aspp.c0.bias"]) - 1, own, inference={"crf": "deeplab"})


SEGMENTER = DeepLab
CHECKPOINTS = [
    base.Checkpoint(
        "deeplab-v2",
        "DeepLab v2 in PyTorch (deeplabv2_resnet101_msc-*.pth)",
        lambda names: {f"{PUBLISHED_PREFIX}layer1.conv1.conv.weight", f"{PUBLISHED_PREFIX}aspp.c0.bias"} <= set(names),
        read_published,
    ),
    base.Checkpoint(
        "deeplab-v2-caffe",
        "DeepLab v2 in Caffe (train2_iter_20000.caffemodel)",
        lambda names: {"res2a_branch1/0", "fc1_voc12_c0/0"} <= set(names),
        read_caffe,
    ),
]
