"""SEAM: class maps that scale with the image and agree among pixels that look alike.

Wang, Zhang, Kan, Shan, Chen, "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
Segmentation", CVPR 2020 (arXiv 2004.04581).

A classifier sees an image x₁ and a smaller copy x₂ of it. From a view's raw class maps C = fc8(f(x)) it makes

    n = C, positive, each class over its maximum, only the best class of a pixel; n₀ = 1 - max n
    R = n Â,   Â the similarity of pixels, from two tapped stages and the image         (PCM, section 3.4)
    P = C at the view's size, R likewise

and with A_k = norm(P_k), B_k = norm(R_k) at the size of the small view, classes that are not in the image set to 0:

    L_cls = multi-label soft margin of the spatial means of P_k, mean over both views   (eq. 7)
    L_er  = mean |A₁ - A₂|                                                              (eq. 8)
    L_ecr = mean of the largest fifth of |S(A₂) - B₁| and of |S(A₁) - B₂|               (eq. 9)
    L_min = mean of the smallest quarter of max_c R_c       (in the authors' code only)

S keeps the best class of a pixel and carries no gradient; in L_ecr, A₀ = 1 - max_c A_c. L_ecr and L_min train the PCM
alone, as n and the taps carry no gradient, L_cls and L_er the classifier alone. The maps of the result are R.

What is not written as in the paper, with equal results: absent classes are 0 in every loss, so only those present are
carried, and the zeros enter the means through their counts; the mean of P is a weighted mean of C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.methods import base
from weakseg.models.rates import caffe_param_groups
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.pixelcorrelation import EPSILON, pixel_correlation

HARD = 0.2
"""The fraction of entries that L_ecr takes (section 4.1, "online hard example mining")."""
EMPTY = 4
"""L_min takes one in so many pixels."""


class Present(NamedTuple):
    """The classes present in the images of a batch, K of them where the most are present: their numbers `classes`
    (N, K) among 0 … C - 1, and `given` (N, K, 1, 1), 1 or, where an image has fewer, 0."""

    classes: Tensor
    given: Tensor

    @classmethod
    def of(cls, tags: Tensor) -> Present:
        """From tags (N, C) of 0 and 1."""
        most = max(1, int(tags.sum(1).max()))
        given, classes = tags.topk(most)
        return cls(classes, given[:, :, None, None])

    def select(self, maps: Tensor) -> Tensor:
        """The maps (N, K, h, w) of these classes out of (N, C, h, w)."""
        return maps.gather(1, self.classes[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


class View(NamedTuple):
    """What is predicted for one size (H, W) of the images, in float32: `scores` (N, C); `maps` P (N, K, H, W) of the
    classes present; `revised` R (N, 1 + K, H, W), background first."""

    scores: Tensor
    maps: Tensor
    revised: Tensor


class SEAM(base.Localiser):
    """A backbone with the classifier `fc8` on its last stage, and the PCM's layers `f8_3`, `f8_4` and `f9`.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """The stages (1 … 5) whose features are compared, how many channels are made of them, and the weights of the
        losses besides the classification's. New layers learn `head_lr_factor` times as fast as the backbone."""

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet38", output_stride=8, frozen_stages=1),
            description="the network whose features are used",
        )
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")
        second_scale: float = Field(default=0.3, gt=0, lt=1, description="size of the second view; the first is 1")
        low_stage: int = Field(default=3, ge=1, le=5, description="the finer stage whose features are compared")
        high_stage: int = Field(default=4, ge=1, le=5, description="the coarser stage whose features are compared")
        low_channels: int = Field(default=64, gt=0, description="made of the finer stage")
        high_channels: int = Field(default=128, gt=0, description="made of the coarser stage")
        centred: bool = Field(
            default=False,
            description="start the comparison of pixels blind to what all of them have in common",
        )
        dropout: float = Field(default=0.5, ge=0, lt=1, description="of the channels that the classifier sees")
        equivariance: float = Field(default=1.0, ge=0, description="weight of L_er")
        cross: float = Field(default=1.0, ge=0, description="weight of L_ecr")
        minimum: float = Field(default=1.0, ge=0, description="weight of L_min")

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        low, high = settings.low_channels, settings.high_channels
        of_stage = dict(enumerate(self.backbone.channels, start=1))
        # The first output is the background's, which nothing trains; the authors' files have it.
        self.fc8 = nn.Conv2d(of_stage[5], 1 + num_classes, 1, bias=False)
        self.f8_3 = nn.Conv2d(of_stage[settings.low_stage], low, 1, bias=False)
        self.f8_4 = nn.Conv2d(of_stage[settings.high_stage], high, 1, bias=False)
        self.f9 = nn.Conv2d(3 + low + high, low + high, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        if settings.centred:
            self._centre()

    @torch.no_grad()
    def _centre(self) -> None:
        """Make the filters of `f9` sum to 0 over the channels of each tap. These are positive, so random filters see
        above all their common level: every pixel is like every other, and R a mean over the image."""
        for taps in self.f9.weight.split([3, *(layer.out_channels for layer in (self.f8_3, self.f8_4))], dim=1)[1:]:
            taps -= taps.mean(1, keepdim=True)

    def raw_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to the raw class maps C (N, 1 + C, h, w) and the features (N, D, h, w) that
        are compared."""
        stages = self.backbone(images)
        maps = self.fc8(F.dropout2d(stages[-1], self.settings.dropout, self.training))
        return maps, self.f9(self.compared(images, stages))

    def compared(self, images: Tensor, stages: list[Tensor]) -> Tensor:
        """The image and the two taps, through which no gradient flows, at the size of the class maps."""
        size = stages[-1].shape[2:]
        low, high = (stages[number - 1].detach() for number in (self.settings.low_stage, self.settings.high_stage))
        taps = [F.relu(self.f8_3(low)), F.relu(self.f8_4(high))]
        return torch.cat([resized(x, size) for x in (images, *taps)], dim=1)

    def view(self, images: Tensor, present: Present) -> View:
        """Both outputs for images (N, 3, H, W), of the background and the classes present."""
        raw, features = self.raw_maps(images)
        size = images.shape[2:]
        normalised = normalised_scores(raw)
        kept = torch.cat([normalised[:, :1], present.select(normalised[:, 1:])], dim=1)
        foreground = raw[:, 1:].float()
        return View(
            mean_resized(foreground, size),
            resized(present.select(foreground), size),
            resized(pixel_correlation(kept, features), size),
        )

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """The four terms of the docstring above, weighted."""
        images, tags = batch["image"], batch["tags"]
        present, num_classes = Present.of(tags), tags.shape[1]
        small = resized(images, scaled_size(images.shape[2:], self.settings.second_scale))
        views = first, second = self.view(images, present), self.view(small, present)
        a1, b1, a2, b2 = compared_maps(first, second, present.given)
        return {
            "classification": classification_loss(first.scores, second.scores, tags),
            "equivariance": self.settings.equivariance * equivariance_loss(a1, a2, num_classes),
            "cross": self.settings.cross * (cross_loss(a2, b1, num_classes) + cross_loss(a1, b2, num_classes)),
            "minimum": self.settings.minimum
            * torch.stack([minimum_loss(v.revised, present.given) for v in views]).mean(),
        }

    def scores(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to a score per class (N, C); its sigmoid is the class's probability."""
        images = batch["image"]
        raw = self.fc8(F.dropout2d(self.backbone(images)[-1], self.settings.dropout, self.training))
        return mean_resized(raw[:, 1:].float(), images.shape[2:])

    def activation_maps(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to the maps R of all classes (N, C, h, w), in [0, 1]."""
        raw, features = self.raw_maps(batch["image"])
        return pixel_correlation(normalised_scores(raw)[:, 1:], features)

    def class_layer(self) -> nn.Conv2d:
        return self.fc8

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """As in Caffe, see `caffe_param_groups`; the new layers learn `head_lr_factor` times as fast."""
        return caffe_param_groups(self, (self.fc8, self.f8_3, self.f8_4, self.f9), lr, self.settings.head_lr_factor)


def scaled_size(size: torch.Size, scale: float) -> tuple[int, int]:
    """Sides of (H, W) times `scale`, rounded down, at least 1."""
    height, width = (max(1, int(side * scale)) for side in size)
    return height, width


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, C, any, any) at `size`: bilinear, corners on corners."""
    height, width = size
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=True)


def mean_resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """The spatial means (N, C) of what `resized` gives, which are weighted means of the maps (N, C, h, w)."""
    weights = []
    for side, target in zip(maps.shape[2:], size, strict=True):
        unit = torch.eye(side, dtype=maps.dtype, device=maps.device)[None]
        weights.append(F.interpolate(unit, target, mode="linear", align_corners=True).mean((0, 2)))
    return torch.einsum("nchw,h,w->nc", maps, *weights)


@torch.no_grad()
def normalised_scores(raw: Tensor) -> Tensor:
    """n (N, 1 + C, h, w), float32, from raw class maps C: what the PCM averages. Carries no gradient.

    Each class is divided by its maximum; at a pixel, classes below the best become 0 and the background is what
    the best leaves.
    """
    positive = F.relu(raw[:, 1:].float())
    scores = F.relu(positive - EPSILON) / (positive.amax((2, 3), keepdim=True) + EPSILON)
    return with_background(scores, best_only(scores))


def min_max_normalised(maps: Tensor) -> Tensor:
    """norm: each map (N, C, H, W), its negative part cut off, from 0 at its minimum to about 1 at its maximum.

    Gradients flow through the minimum and the maximum, each to one position, which the way they are taken decides.
    """
    positive = F.relu(maps)
    flat = positive.flatten(2)
    highest, lowest = flat.max(2).values[..., None, None], flat.min(2).values[..., None, None]
    return F.relu(positive - lowest - EPSILON) / (highest - lowest + EPSILON)


def best_only(foreground: Tensor) -> Tensor:
    """Scores (N, C, h, w) with those below the pixel's best set to 0; equal ones stay."""
    return torch.where(foreground < foreground.amax(1, keepdim=True), 0, foreground)


def with_background(foreground: Tensor, shown: Tensor) -> Tensor:
    """`shown` (N, C, h, w) behind the background 1 - max of `foreground`."""
    return torch.cat([1 - foreground.amax(1, keepdim=True), shown], dim=1)


def classification_loss(first: Tensor, second: Tensor, tags: Tensor) -> Tensor:
    """L_cls from the scores (N, C) of both views."""
    return torch.stack([F.multilabel_soft_margin_loss(scores, tags) for scores in (first, second)]).mean()


def compared_maps(first: View, second: View, given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A₁, B₁, A₂, B₂ at the size of the second view: normalised, then resized, then without absent classes.
    A (N, K, h, w) are P's, B (N, 1 + K, h, w) are R's."""
    size = second.maps.shape[2:]
    given_or_background = torch.cat([torch.ones_like(given[:, :1]), given], dim=1)
    compared = []
    for view in (first, second):
        compared.append(resized(min_max_normalised(view.maps), size) * given)
        compared.append(resized(min_max_normalised(view.revised), size) * given_or_background)
    a1, b1, a2, b2 = compared
    return a1, b1, a2, b2


def equivariance_loss(a1: Tensor, a2: Tensor, num_classes: int) -> Tensor:
    """L_er: the mean over all `num_classes` classes, of which those not carried are equal (0)."""
    return (a1 - a2).abs().sum() / (len(a1) * num_classes * a1[0, 0].numel())


def cross_loss(raw: Tensor, revised: Tensor, num_classes: int) -> Tensor:
    """L_ecr: B (N, 1 + K, h, w) of one view against S(A), A (N, K, h, w) of the other: the mean of the largest `HARD`
    of all (1 + C) h w entries of each image, of which those not carried are 0."""
    target = with_background(raw, best_only(raw)).detach()
    difference = (target - revised).abs().flatten(1)
    count = max(1, int((1 + num_classes) * raw[0, 0].numel() * HARD))
    hardest = difference.topk(min(count, difference.shape[1]), sorted=False).values
    return hardest.sum() / (len(raw) * count)


def minimum_loss(revised: Tensor, given: Tensor) -> Tensor:
    """L_min of R (N, 1 + K, H, W): the mean of the smallest quarter of each image's best foreground scores."""
    best = F.relu((revised[:, 1:] * given).amax(1)).flatten(1)
    count = max(1, best.shape[1] // EMPTY)
    return best.topk(count, largest=False, sorted=False).values.sum() / (len(best) * count)


HEAD = ("fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight")


def read_published(state: Mapping[str, Tensor]) -> base.Reading:
    """A `SEAM` with ResNet-38 from its authors' checkpoint."""
    own = {name if name in HEAD else f"backbone.{name}": tensor for name, tensor in state.items()}
    settings = SEAM.Settings(backbone=BackboneSettings(name="resnet38", output_stride=8, weights=None, frozen_stages=1))
    num_classes = len(state["fc8.weight"]) - 1 if "fc8.weight" in state else None
    return base.Reading(settings, num_classes, own, inference={"scales": (0.5, 1.0, 1.5, 2.0)})


LOCALISER = SEAM
CHECKPOINTS = [
    base.Checkpoint(
        "seam",
        "SEAM with ResNet-38 (resnet38_SEAM.pth)",
        lambda names: {"b2.conv_branch1.weight", *HEAD} <= set(names),
        read_published,
    )
]
