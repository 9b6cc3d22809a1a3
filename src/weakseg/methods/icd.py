"""ICD: in each class, one boundary between object and background.

Fan, Zhang, Song, Tan, "Learning Integral Objects with Intra-Class Discriminator for Weakly-Supervised Semantic
Segmentation", CVPR 2020.

A class activation map tells a class from the other classes, not an object from the background around it. ICD learns a
direction w_k in feature space for every class k, that tells these two apart. With features X of an image, F = BN(X),
tags y, hw places p and ŵ = w / |w|:

    cam_k  = fc8_k(f),   L_cls = Σ_k BCE(mean_p cam_k, y_k)                 f: the last features of the backbone
    s_k(p) = ŵ_k · F(p), L_bu  = -5 Σ_k ȳ_k mean_p s_k(p)²                  bottom up: the direction of most energy
    u_k    = ± s_k: the side of s where max(cam_k, 0) is larger, in a running mean over images, is the object
    r_k    = mean of u_k over superpixels, of which each is positive for at most one class     (`refined`)
    t_k    = r_k, its positive and its negative part over their largest absolute value
    L_td   = ω Σ_k y_k mean_p [|t_k| > 0.2] BCE(td_k(p), t_k(p) > 0)        top down

ȳ is y for images of one class and 0 for others, td = conv_ft(F, fc6_ft(F), fc7_ft(fc6_ft(F))), and ω warms up. L_bu
trains w alone, L_cls the backbone and fc8, L_td everything but these two heads. In the result, td > 0 is object. Seeds
for a segmenter come from td and, where classes compete, from cam (`ICDSeeds`).

The authors have VGG-16: X is conv5_3, f is fc7, and fc6_ft, fc7_ft start as copies of fc6, fc7. In any other backbone X
and f are both the features of the last stage, and fc6_ft, fc7_ft are new layers of `width` channels.

What is not as in the authors' program: the means of cam on both sides of s are updated once for all processes; the
warm-up counts updates, and both go on where a training was interrupted. What is not written as there, with equal
results: means over superpixels are sums over places, without a one-hot map; absent classes have one row in the CRF.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg import parallel
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, label_array
from weakseg.methods import base
from weakseg.models.originals import mxnet_vgg16_name
from weakseg.models.rates import four_groups
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.models.vgg import VGG16
from weakseg.ops.activation import GREY, IMAGENET_MEAN, IMAGENET_STD, ActivationMaps
from weakseg.ops.crf_parameters import known_or_none
from weakseg.ops.crf_unary import unary_from_labels
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.fields import TAGS, ImageField
from weakseg.ops.otsu import histogram, otsu
from weakseg.ops.resize import aligned_side, aligned_taps

EPSILON = 1e-5
ENERGY_WEIGHT = 10.0
MEANS_RATE = 0.1
"""Of the running means of cam."""
SELDOM = 0.1
"""Part of the images of a class: if fewer show it alone, there are too few to learn its direction from."""
SURE = 0.2
"""A place whose |t| is smaller is no target."""
WIDE = 0.5
"""Part of the largest score; a median above it is that of a score without an object."""
LEAST_SALIENT = 0.01
"""Part of an image; a saliency map that shows less is empty."""


class Outputs(NamedTuple):
    """What the network makes of images: `cam` (N, C, h, w), `features` F (N, D, h, w) and `logits` td (N, C, h, w)."""

    cam: Tensor
    features: Tensor
    logits: Tensor


class ICD(base.Localiser):
    """A backbone with the heads `fc8` (cam), `icd_bu` (w) and `fc6_ft`, `fc7_ft`, `conv_ft` (td).

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """Defaults are the paper's. New layers learn `head_lr_factor` times as fast as the others."""

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="vgg16_icd", output_stride=8),
            description="the network whose features are used",
        )
        feature_stage: int | None = Field(
            default=None,
            ge=1,
            le=5,
            description="stage whose features X are; null: 4 (conv5_3) of VGG-16, else the last",
        )
        width: int = Field(default=1024, gt=0, description="channels of fc6_ft and fc7_ft")
        dropout: float = Field(default=0.5, ge=0, lt=1, description="of what fc8 sees")
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")
        alone: bool | Literal["auto"] = Field(
            default=True,
            description="directions learn from images of one class alone; false: from all images of their class; auto: "
            "from all only those of classes that are seldom seen alone",
        )
        warmup: float = Field(default=0.1, ge=0, le=1, description="part of the training in which ω rises to 1")

    class Options(base.Settings):
        """Which maps are made: the `icd` score td, `cam`, or `both` (`both_branches`); by default without negative
        values."""

        maps: Literal["icd", "cam", "both"] = Field(
            default="icd",
            description="which branch's scores are the maps; both: the mean of CAM and of what ICD's score has above "
            "its median, or CAM alone where the score is wide",
        )
        signed: bool = Field(default=False, description="keep negative values, for maps of the style raw")
        canvas: int = Field(default=1, ge=1, description="least height and width of what the network sees, pixels")
        align_corners: bool = Field(
            default=False,
            description="enlarge maps with corners on corners, as they are made; false: as the authors do",
        )

    fields: ClassVar[Mapping[str, ImageField]] = {"tags": TAGS, "superpixels": ImageField("ids")}
    cam_means: Tensor
    _sums: Tensor
    _means_after: Tensor | None

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        self.feature_stage = settings.feature_stage or (4 if isinstance(self.backbone, VGG16) else 5)
        self._require_equal_strides()
        channels, width = self.backbone.channels[self.feature_stage - 1], settings.width
        self.fc8 = nn.Conv2d(self.backbone.channels[-1], num_classes, 1)
        self.feat_bn = nn.BatchNorm2d(channels)
        self.feat_bn.weight.requires_grad_(False)
        self.icd_bu = nn.Linear(channels, num_classes, bias=False)
        self.fc6_ft = nn.Conv2d(channels, width, 3, padding=1)
        self.fc7_ft = nn.Conv2d(width, width, 1)
        self.conv_ft = nn.Conv2d(channels + 2 * width, num_classes, 1, bias=False)
        # For each class, the running mean of max(cam, 0) where s is positive, and where it is negative.
        self.register_buffer("cam_means", torch.zeros(num_classes, 2))
        # The images of each class in earlier updates, and those that show it alone.
        self.seen = torch.zeros(num_classes, 2)
        self.new_layers: list[nn.Module] = [self.fc8, self.conv_ft]
        self._initialise()
        self.warmth = 1.0
        self._begin_sums()

    def _require_equal_strides(self) -> None:
        number, strides = self.feature_stage, self.backbone.strides
        if strides[number - 1] != strides[-1]:
            raise WeaksegError(
                f"ICD compares the class maps of the last stage, of stride {strides[-1]}, with features of stage "
                f"{number}, of stride {strides[number - 1]}. Set model.feature_stage to 5 or a stage "
                "of that stride."
            )

    def _initialise(self) -> None:
        for layer in (self.fc8, self.icd_bu, self.conv_ft):
            nn.init.normal_(layer.weight, std=0.01)
        assert self.fc8.bias is not None
        nn.init.zeros_(self.fc8.bias)
        branch = (self.fc6_ft, self.fc7_ft)
        if isinstance(self.backbone, VGG16) and self.backbone.fc6.weight.shape == self.fc6_ft.weight.shape:
            for layer, original in zip(branch, (self.backbone.fc6, self.backbone.fc7), strict=True):
                layer.load_state_dict(original.state_dict())
            return
        self.new_layers += branch
        for layer in branch:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def outputs(self, images: Tensor) -> Outputs:
        """All outputs for normalised images (N, 3, H, W), in float32 (or float64, if the network is)."""
        stages = self.backbone(images)
        cam = self.fc8(F.dropout(stages[-1], self.settings.dropout, self.training))
        features = self._normalised(_exact(stages[self.feature_stage - 1]))
        return Outputs(_exact(cam), features, _exact(self._top_down(features)))

    def _normalised(self, features: Tensor) -> Tensor:
        """F of X, with the statistics of the batch in training."""
        if self.training and features.numel() == features.shape[1]:
            raise WeaksegError(
                "One image of one cell has no statistics to normalise with. Give a micro-batch more images "
                "(train.batch_size) or larger crops (augment.crop)."
            )
        return self.feat_bn(features)

    def _top_down(self, features: Tensor) -> Tensor:
        first = F.relu(self.fc6_ft(features))
        second = F.relu(self.fc7_ft(first))
        return self.conv_ft(torch.cat([features, first, second], dim=1))

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """The three terms of the docstring above."""
        tags = batch["tags"]
        cam, features, logits = self.outputs(batch["image"])
        with torch.autocast(tags.device.type, enabled=False):
            target = refined(self.object_scores(features.detach(), cam.detach(), tags), tags, batch["superpixels"])
            return {
                "classification": classification_loss(cam, tags),
                "bottom_up": BottomUp.apply(
                    self.icd_bu.weight, features.detach(), tags, self.learned_alone(tags.device)
                ),
                "top_down": self.warmth * top_down_loss(logits, target, tags),
            }

    def learned_alone(self, device: torch.device) -> Tensor:
        """Which classes (C,) learn their direction from images that show them alone."""
        if self.settings.alone == "auto":
            return (self.seen[:, 1] >= SELDOM * self.seen[:, 0]).to(device)
        return torch.full((len(self.seen),), self.settings.alone, device=device)

    @torch.no_grad()
    def object_scores(self, features: Tensor, cam: Tensor, tags: Tensor) -> Tensor:
        """u (N, C, h, w). In training, the running means learn from `cam` (N, C, h, w) before they are used."""
        scores = bottom_up_scores(features, self.icd_bu.weight)
        means = self.cam_means
        if self.training:
            counts = torch.stack([tags.sum(0), shown_alone(tags).sum(0)], dim=1)
            sums = torch.cat([side_sums(scores, cam, tags), counts.to(cam.dtype)], dim=1)
            self._sums = self._sums.to(sums) + parallel.sum_tensor(sums)
            means = updated_means(means, self._sums)
            self._means_after = means
        return scores * object_side(means)[:, None, None]

    def begin_update(self, update: int, updates: int) -> None:
        """Let ω rise, and count the images of a new update."""
        self.warmth = warmup_weight(update, round(self.settings.warmup * updates))
        self._begin_sums()

    def _begin_sums(self) -> None:
        """Micro-batches of one update add to one sum, so that the means move once in an update."""
        self._sums = torch.zeros(())
        self._means_after = None

    def end_update(self) -> None:
        """Keep the running means and the numbers of images of this update."""
        if self._means_after is not None:
            self.cam_means.copy_(self._means_after)
            self.seen += self._sums[:, 2:].to(self.seen)
        self._begin_sums()

    def training_state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        self.seen = state["seen"]

    def scores(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to a score per class (N, C); its sigmoid is the class's probability."""
        return self.outputs(batch["image"]).cam.mean((2, 3))

    def activation_maps(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to the maps (N, C, H, W) that `options` choose, at the size of the image."""
        images = batch["image"]
        height, width = images.shape[-2:]
        seen = self.on_canvas(images)
        maps = self.low_resolution_maps(seen)
        size = (seen.shape[-2], seen.shape[-1])
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=self.options.align_corners)
        maps = maps[..., :height, :width]
        return maps if self.options.signed else F.relu(maps)

    def low_resolution_maps(self, images: Tensor) -> Tensor:
        """The maps that `options` choose, (N, C, h, w) of any sign."""
        outputs = self.outputs(images)
        if self.options.maps == "both":
            return both_branches(outputs)
        return outputs.logits if self.options.maps == "icd" else outputs.cam

    def on_canvas(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) in the upper left corner of a grey canvas, to whose corners features go."""
        height, width = images.shape[-2:]
        stride = self.backbone.strides[-1]
        sides = (aligned_side(side, stride, self.options.canvas) for side in (height, width))
        grey = torch.from_numpy((GREY / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).to(images)
        canvas = grey[:, None, None].repeat(len(images), 1, *sides)
        canvas[..., :height, :width] = images
        return canvas

    def class_layer(self) -> nn.Conv2d:
        return self.fc8

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Weights and biases of old layers, and of new ones at `head_lr_factor` times the rate; biases do not decay."""
        factor = self.settings.head_lr_factor
        return four_groups(self.named_parameters(), self.new_layers, lr, new_factor=factor, bias_factor=1)


def both_branches(outputs: Outputs) -> Tensor:
    """The mean of CAM and of what ICD's score has above its median in the image, each over its largest value and
    without negative ones, (N, C, h, w).

    The score is positive on much of what lies around objects, hence the median. Where that is more than `WIDE` of the
    largest value, the score is high on most of the image and tells no object from its background: CAM alone.
    """
    cam, score = _over_largest(outputs.cam), _over_largest(outputs.logits)
    median = score.flatten(2).median(2).values[..., None, None]
    return torch.where(median > WIDE, cam, (cam + _over_largest(score - median)) / 2)


def _over_largest(maps: Tensor) -> Tensor:
    """What is positive in maps (N, C, h, w), over the largest value of each image and class."""
    positive = maps.clamp(min=0)
    return positive / positive.amax((2, 3), keepdim=True).clamp(min=EPSILON)


def _exact(values: Tensor) -> Tensor:
    """In float32, unless they have more digits."""
    return values.float() if values.dtype != torch.float64 else values


def warmup_weight(update: int, warmup: int) -> float:
    """ω of an update (0, 1, …): from exp(-10) it rises until, after `warmup` updates, it is 1."""
    return math.exp(-10 * (warmup - update) / warmup) if update < warmup else 1.0


def classification_loss(cam: Tensor, tags: Tensor) -> Tensor:
    """L_cls of cam (N, C, h, w): binary cross entropy, the sum over classes, the mean over images."""
    return F.binary_cross_entropy_with_logits(cam.mean((2, 3)), tags.to(cam), reduction="sum") / len(cam)


# Bottom up ------------------------------------------------------------------------------------------------------------


def bottom_up_scores(features: Tensor, weight: Tensor) -> Tensor:
    """s (N, C, h, w) of features F (N, D, h, w) and directions w (C, D)."""
    unit = weight / (weight.square().sum(1, keepdim=True) + 1e-10).sqrt()
    return torch.einsum("kc,nchw->nkhw", unit, features)


class BottomUp(torch.autograd.Function):
    """L_bu of directions w (C, D), the mean over images, for features F (N, D, h, w) and tags (N, C). `alone` says for
    which classes (C,), or for all, only images of one class count.

    Its gradient is the authors': that of L_bu but for what keeps it finite where w is 0. There is none for F.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, features: Tensor, tags: Tensor, alone: Tensor | bool = True) -> Tensor:
        scores = bottom_up_scores(features, weight)
        learned = torch.where(torch.as_tensor(alone, device=tags.device), shown_alone(tags), tags)
        counted = learned.to(scores)[:, :, None, None] * scores
        cells = scores[0, 0].numel()
        # g, the gradient to ŵ.
        ctx.save_for_backward(weight, torch.einsum("nkhw,nchw->kc", counted, features) * (-ENERGY_WEIGHT / cells))
        ctx.images = len(features)
        return -ENERGY_WEIGHT / 2 * (counted * scores).sum() / (cells * len(features))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        weight, along = ctx.saved_tensors
        norm = weight.norm(dim=1, keepdim=True)
        radial = (weight * along).sum(1, keepdim=True) * weight / (norm**3 + EPSILON)
        return upstream * (along / (norm + EPSILON) - radial) / ctx.images, None, None, None


def shown_alone(tags: Tensor) -> Tensor:
    """The tags (N, C) of images with one class."""
    return tags * (tags.sum(1, keepdim=True) < 1 + 1e-3)


# Which side is the object ---------------------------------------------------------------------------------------------


def side_sums(scores: Tensor, cam: Tensor, tags: Tensor) -> Tensor:
    """(C, 2): the sums over the images of each class of the means of max(cam, 0) where s > 0, and where s < 0."""
    activation = F.relu(cam)
    means = []
    for side in (scores > 0, scores < 0):
        means.append((activation * side).sum((2, 3)) / side.sum((2, 3)).clamp(min=EPSILON))
    return (torch.stack(means, dim=2) * tags.to(cam)[:, :, None]).sum(0)


def updated_means(means: Tensor, sums: Tensor) -> Tensor:
    """The running means (C, 2) after an update whose sums (C, 2) and numbers of images begin `sums` (C, 3 …); those of
    classes without an image stay."""
    count = sums[:, 2:3]
    moved = (1 - MEANS_RATE) * means + MEANS_RATE * (sums[:, :2] / count.clamp(min=1)).to(means)
    return torch.where(count > 0, moved, means)


def object_side(means: Tensor) -> Tensor:
    """1 for classes whose objects lie where s > 0, -1 for others, (C,)."""
    return torch.where(means[:, 0] < means[:, 1], -1.0, 1.0).to(means)


# Superpixels ----------------------------------------------------------------------------------------------------------


class Membership(NamedTuple):
    """To which superpixels places belong: place p of all N · h · w to superpixel `ids[t, p]` with `weights[t, p]`, for
    one, two or four t. There are `number` superpixels, those of different images apart."""

    ids: Tensor
    weights: Tensor
    number: int

    @classmethod
    def of(cls, superpixels: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Membership:
        """What corner-aligned bilinear resizing to `size` (h, w) makes of the one-hot maps of ids (N, H, W)."""
        rows, columns = (
            aligned_taps(*sides, superpixels.device) for sides in zip(superpixels.shape[1:], size, strict=True)
        )
        image = torch.arange(len(superpixels), device=superpixels.device)[:, None, None]
        keys, weights = [], []
        for row, row_weight in rows:
            for column, column_weight in columns:
                picked = superpixels[:, row][:, :, column].long()
                keys.append(torch.stack([image.expand_as(picked), picked]).flatten(1))
                weights.append(torch.outer(row_weight, column_weight).to(dtype).expand_as(picked).flatten())
        of_all = torch.stack(keys, dim=1)
        numbered = of_all[0] * (int(of_all[1].max()) + 1) + of_all[1]
        known, ids = numbered.unique(return_inverse=True)
        return cls(ids, torch.stack(weights), len(known))

    def sums(self, values: Tensor) -> Tensor:
        """The sums (S, C) over superpixels of values (P, C) of places."""
        total = values.new_zeros(self.number, values.shape[1])
        for ids, weights in zip(self.ids, self.weights, strict=True):
            total.index_add_(0, ids, values * weights[:, None])
        return total

    def spread(self, values: Tensor) -> Tensor:
        """Values (S, C) of superpixels at their places, (P, C)."""
        return torch.stack([values[ids] * w[:, None] for ids, w in zip(self.ids, self.weights, strict=True)]).sum(0)


@torch.no_grad()
def refined(scores: Tensor, tags: Tensor, superpixels: Tensor) -> Tensor:
    """r (N, C, h, w) of u (N, C, h, w), the tags (N, C) and the ids (N, H, W) of superpixels.

    A superpixel most of which is positive for some class is positive for the one class that wins it, which has the mean
    of its positive part there. Every other class has the mean of its negative part.
    """
    count, classes, height, width = scores.shape
    member = Membership.of(superpixels, (height, width), scores.dtype)
    v = (scores * tags.to(scores)[:, :, None, None]).permute(0, 2, 3, 1).reshape(-1, classes)
    present = tags.to(scores).repeat_interleave(height * width, dim=0)
    size = member.sums(torch.ones_like(v[:, :1])).clamp(min=EPSILON)
    positive = v.clamp(min=0)
    share = positive / positive.amax(1, keepdim=True).clamp(min=EPSILON)
    winner = F.one_hot((member.sums(share) / size).argmax(1), classes)
    mostly_positive = member.sums(v.sign()).amax(1, keepdim=True) > EPSILON
    won = (winner * mostly_positive).to(scores)
    mean = won * member.sums(positive) / size + (1 - won) * member.sums(v.clamp(max=0)) / size
    r = member.spread(mean) * (present > 0)
    return r.reshape(count, height, width, classes).permute(0, 3, 1, 2)


# Top down -------------------------------------------------------------------------------------------------------------


def normalised_target(scores: Tensor) -> Tensor:
    """t (N, C, h, w) in [-1, 1] of r: positive and negative values over the largest of each image and class."""
    return _over_largest(scores) - _over_largest(-scores)


def top_down_loss(logits: Tensor, refined_scores: Tensor, tags: Tensor) -> Tensor:
    """L_td without ω of td (N, C, h, w): over all places, the mean of the cross entropy where the target is sure."""
    target = normalised_target(refined_scores.detach())
    sure = (target.abs() > SURE) & (tags > 0)[:, :, None, None]
    losses = F.binary_cross_entropy_with_logits(logits, (target > 0).to(logits), reduction="none")
    return (losses * sure).sum() / (len(logits) * logits[0, 0].numel())


# Seeds ----------------------------------------------------------------------------------------------------------------


Boundary = Literal["zero", "adaptive"]
BOUNDARY: Any = Field(
    default="zero",
    description="score between object and background: zero, as in the paper; adaptive: found in each image's scores",
)


class ICDSeeds(base.MaskRule):
    """Seeds from ICD scores, the stage's `maps`, and CAM's, the field `cam`: both signed, of the same classes.

    Pixels may stay void. Section 3.5 of the paper; details as in the authors' program.
    """

    class Settings(base.Settings):
        """A pixel is void where the CRF gives no label as much as `least_probability`."""

        crf: Annotated[str | None, AfterValidator(known_or_none)] = Field(
            default="icd", description="the name of a set of CRF parameters; null: no CRF"
        )
        certainty: float = Field(default=0.5, gt=0, lt=1, description="of a seed, before it is normalised")
        least_probability: float = Field(default=0.1, ge=0, lt=1, description="below it a pixel is void")
        boundary: Boundary = BOUNDARY

    fields: ClassVar[Mapping[str, ImageField]] = {"cam": ImageField("maps")}

    def mask(
        self, item: base.Item, maps: ActivationMaps, tags: Collection[int], num_classes: int
    ) -> npt.NDArray[np.uint8]:
        seeds = labelled_seeds(item, maps, self.settings.boundary)
        if self.settings.crf is None or len(maps.labels) == 0:
            return seeds
        marginals = dense_crf(item["image"], self.unary(seeds, 1 + num_classes), self.settings.crf)
        return label_array(np.where(marginals.max(0) < self.settings.least_probability, VOID, marginals.argmax(0)))

    def unary(self, seeds: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.float32]:
        """U (count, H, W) of a label map of seeds (H, W). The authors share 1 - certainty among all labels, the seed's
        among them, before they normalise. Absent classes have the same row, so that they cost as much as one."""
        given, other = self.settings.certainty, (1 - self.settings.certainty) / count
        return unary_from_labels(seeds, count, given / (given + (count - 1) * other))


def labelled_seeds(
    item: base.Item, maps: ActivationMaps, boundary: Boundary, salient: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.uint8]:
    """`seeds_of` an image with the field `cam` and ICD's `maps`; without a class, everything is background."""
    if not maps.signed:
        raise WeaksegError(
            "ICD's seeds need signed scores. Give the stages of maps style: raw, options: {signed: true}."
        )
    if len(maps.labels) == 0:
        return np.zeros(item["image"].shape[:2], np.uint8)
    scores = maps.upsampled()
    if boundary == "adaptive":
        scores = adaptively_bounded(scores)
    return seeds_of(item["cam"], scores, label_array(maps.labels), salient)


def adaptively_bounded(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scores (K, H, W), K > 0, less what divides their positive part most clearly: Otsu's threshold of the best class's
    share of its largest score. Where td learned little of an image's background, 0 lies too far out."""
    highest = scores.max((1, 2), keepdims=True).clip(min=EPSILON)
    parts = otsu(histogram((scores / highest).clip(min=0).max(0)))
    return scores if parts is None else scores - np.float32(parts.threshold) * highest


def seeds_of(
    cam: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    salient: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.uint8]:
    """The label map (H, W) of seeds: 0, one of `labels` (K,) or 255, from `cam` and ICD `scores` (K, H, W), K > 0.

    Where ICD says object for several classes, the one with the largest product of both scores is taken. Background is
    where it says background for all classes or, with a map (H, W) of what is `salient`, what is not; a pixel that is
    both or neither is void. A map that shows next to nothing is not believed.
    """
    positive = scores.clip(min=0)
    share = positive / positive.max((1, 2), keepdims=True).clip(min=EPSILON)
    inside = share > EPSILON
    foreground, candidate = inside.any(0), inside.argmax(0)
    negative = scores.clip(max=0)
    background = (negative / negative.min((1, 2), keepdims=True).clip(max=-EPSILON) > EPSILON).all(0)
    if salient is not None:
        background = ~salient & background if salient.mean() < LEAST_SALIENT else ~salient
    void = background == foreground
    if len(labels) > 1:
        activation = cam.clip(min=0)
        activation = activation - activation.min()
        evidence = activation / max(activation.max(), EPSILON) * share
        candidate = np.where(inside.sum(0) > 1, evidence.argmax(0), candidate)
        void |= foreground & (np.ptp(evidence, axis=0) <= EPSILON)
    seeds = np.where(background, np.uint8(0), labels[candidate])
    return np.where(void, np.uint8(VOID), seeds)


# Published checkpoints ------------------------------------------------------------------------------------------------

_HEADS = {
    "arg:icd_bu_weight": "icd_bu.weight",
    "arg:feat_bn_gamma": "feat_bn.weight",
    "arg:feat_bn_beta": "feat_bn.bias",
    "aux:feat_bn_moving_mean": "feat_bn.running_mean",
    "aux:feat_bn_moving_var": "feat_bn.running_var",
    "aux:icd_accum_resign_moving_mean": "cam_means",
}
_HEAD_LAYER = re.compile(r"arg:(fc8|fc6_ft|fc7_ft|conv_ft)_(weight|bias)")


def original_name(name: str) -> str | None:
    """Our name of a tensor in the authors' files; None for a name that they do not have."""
    if name in _HEADS:
        return _HEADS[name]
    if match := _HEAD_LAYER.fullmatch(name):
        return f"{match[1]}.{match[2]}"
    own = mxnet_vgg16_name(name)
    return own and f"backbone.{own}"


def read_published(state: Mapping[str, Tensor]) -> base.Reading:
    """An `ICD` with VGG-16 from a checkpoint of its authors' program. The scale of `feat_bn` counts as 1 there,
    whatever the file says."""
    names = {name: original_name(name) for name in state}
    known = {own: state[name] for name, own in names.items() if own is not None}
    ignored = [name for name, own in names.items() if own is None]
    if "feat_bn.weight" in known:
        known["feat_bn.weight"] = torch.ones_like(known["feat_bn.weight"])
    settings = ICD.Settings(backbone=BackboneSettings(name="vgg16_icd", output_stride=8, weights=None))
    return base.Reading(settings, len(known["icd_bu.weight"]), known, ignored)


LOCALISER = ICD
RULE = ICDSeeds
CHECKPOINTS = [
    base.Checkpoint(
        "icd",
        "ICD with VGG-16 (MXNet)",
        lambda names: {"arg:icd_bu_weight", "arg:conv_ft_weight", "arg:conv1_1_weight"} <= set(names),
        read_published,
    )
]
