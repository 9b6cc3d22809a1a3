"""AffinityNet: learns whether two nearby pixels are of one class, and lets activation maps walk between those that are.

Ahn, Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018 (arXiv 1803.10464).

From the activation maps v of an image, two dense CRFs find what can be learned from (section 3.2 of the paper). With
the background's score (1 - max_c v_c)^α, a small α makes a strong background, so that what is still a class is surely
one; a large α makes a weak background, so that what is still background surely is:

    y_i = class of pixel i where it wins against the strong background
          0 where the weak background wins;    void elsewhere

Features f (448, h, w) of three stages of a backbone give the affinity of two pixels less than 5 cells apart. Pairs of
reliable pixels teach it, the three kinds of pairs P weighted alike (section 3.3):

    a_ij = exp(- mean over channels of |f_i - f_j|)
    L    = - ¼ mean_{ij ∈ P_bg} log a_ij  - ¼ mean_{ij ∈ P_fg} log a_ij  - ½ mean_{ij ∈ P_neg} log(1 - a_ij)
    P_bg: y_i = y_j = 0,    P_fg: y_i = y_j > 0,    P_neg: y_i ≠ y_j

The maps and their background walk at random between pixels of high affinity, 2^t steps (section 3.4):

    T = B / colsum(B),  B_ij = a_ij^β,  B_ii = 1,        v' = [(1 - max_c v_c)^α, v] · T^(2^t)

The largest of v' at a pixel is its class; no threshold is needed. The equations are those of the authors' program,
which takes the mean over channels where the paper has the sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, VOID
from weakseg.methods import base
from weakseg.models.rates import caffe_param_groups
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.activation import ActivationMaps, normalise_image
from weakseg.ops.background import SURELY_BACKGROUND, SURELY_FOREGROUND, alpha_for, with_background
from weakseg.ops.crf_parameters import PARAMETERS, known_parameters
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.fields import ImageField
from weakseg.ops.pairs import Pairs, count_pairs, kinds_of_pairs, shifted
from weakseg.ops.randomwalk import lopsided_affinities, raised_beta, random_walk, reduced_radius

WIDTHS = (64, 128, 256)
CHANNELS_PER_GROUP = 8
EPSILON = 1e-5

Alpha = Annotated[float, Field(gt=0)] | Literal["adaptive"]
"""The power of a background; adaptive: as suits each image's maps."""


class AffinityNet(base.Refiner):
    """A backbone and a head on three of its stages. It knows nothing of classes.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """The head learns `head_lr_factor` times as fast as the backbone. Defaults are those of the paper's program.

        The affinities have the resolution of the first of the three stages in `taps`. `group_norm` normalises the
        stages' features, as the paper's VGG-16 needs it.
        """

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet50", output_stride=8),
            description="the network whose features are used",
        )
        taps: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
            default=(3, 4, 5), min_length=3, max_length=3, description="the stages (1 … 5) that are looked at"
        )
        group_norm: bool = Field(default=False, description="normalise the features of the stages, as for VGG-16")
        low_alpha: Alpha = Field(default=4.0, description="of the strong background: the rest is surely a thing")
        high_alpha: Alpha = Field(default=32.0, description="of the weak background, which surely is background")
        crf: Annotated[str, AfterValidator(known_parameters)] = Field(
            default="affinitynet", description="the set of CRF parameters that makes labels of the maps"
        )
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")

        @property
        def stride(self) -> int:
            """Pixels of the image per cell of the affinities."""
            return min(2 ** self.taps[0], self.backbone.output_stride)

    class Options(base.Settings):
        """How the maps walk. Defaults are those of the paper's program."""

        alpha: Alpha = Field(
            default=16.0, description="of the background's score; adaptive: found in each image's maps"
        )
        beta: float = Field(default=8.0, gt=0, description="power of the affinities: large keeps to the surest paths")
        most_affinity: float | None = Field(
            default=None,
            gt=0,
            lt=1,
            description="beta is raised in each image until the mean of its affinities is at most this; null: as given",
        )
        log2_steps: int = Field(default=8, ge=0, le=16, description="the walk has 2^log2_steps steps")
        restart: float = Field(
            default=0.0,
            ge=0,
            lt=1,
            description="probability to begin anew where the walk came from, at each step: large stays near the maps",
        )
        all_pairs: bool = Field(default=False, description="also those near the borders that the program leaves out")

    fields: ClassVar[Mapping[str, ImageField]] = {"low": ImageField("maps"), "high": ImageField("maps")}

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        channels = [self.backbone.channels[stage - 1] for stage in settings.taps]
        self.reductions = nn.ModuleList(
            _reduction(*widths, settings.group_norm) for widths in zip(channels, WIDTHS, strict=True)
        )
        self.combination = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        nn.init.xavier_uniform_(self.combination.weight, gain=4)

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """Sums over pairs, for `image` (N, 3, H, W) and `labels` (N, h, w) uint8 at the stride of the affinities, 255
        void. Labels of one image are only compared with each other, so any numbers do."""
        labels = batch["labels"]
        radius = reduced_radius((labels.shape[-2], labels.shape[-1]))
        return affinity_losses(pair_affinities(self.features(batch["image"]), radius), pairs(labels, radius))

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """The pairs of each kind."""
        labels = batch["labels"]
        counts = count_pairs(labels, reduced_radius((labels.shape[-2], labels.shape[-1])))
        return dict(zip(("background", "foreground", "different"), counts.unbind(), strict=True))

    def features(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to features (N, 448, h, w), whose distances make the affinities."""
        return F.elu(self.combination(self.stage_features(images)))

    def stage_features(self, images: Tensor) -> Tensor:
        """The reduced features of the three stages (N, 448, h, w), at the resolution of the first."""
        stages = self.backbone(images)
        tapped = [reduce(stages[tap - 1]) for tap, reduce in zip(self.settings.taps, self.reductions, strict=True)]
        return torch.cat([_resized(features, tapped[0]) for features in tapped], 1)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The head's convolutions are new layers; its group normalisation counts among the old ones."""
        new = [module for module in (*self.reductions.modules(), self.combination) if isinstance(module, nn.Conv2d)]
        return caffe_param_groups(self, new, lr, self.settings.head_lr_factor)

    # What is learned from an image ------------------------------------------------------------------------------------

    @staticmethod
    def evidence(settings: Settings, image: base.Image, maps: ActivationMaps) -> dict[str, npt.NDArray[Any]]:
        """The marginals `low` and `high` (1 + K, H, W) float16 of the dense CRFs with strong and weak background."""
        classes = maps.upsampled()
        alphas = (
            alpha_for(maps, settings.low_alpha, SURELY_FOREGROUND),
            alpha_for(maps, settings.high_alpha, SURELY_BACKGROUND),
        )
        unaries = [unary_from_probabilities(with_background(classes, alpha)) for alpha in alphas]
        low, high = dense_crf(image, unaries, PARAMETERS[settings.crf])
        return {"low": low.astype(np.float16), "high": high.astype(np.float16)}

    @classmethod
    def prepare(cls, settings: Settings, view: base.Item) -> base.Item:
        """A view of the evidence becomes `labels` (h, w) for `losses`.

        Raises `WeaksegError` for a crop that is too small to have pairs of pixels.
        """
        labels = view_labels(view["low"], view["high"], settings.stride)
        if reduced_radius((labels.shape[0], labels.shape[1])) < 2:
            raise WeaksegError(
                f"A crop of {view['image'].shape[-1]} pixels is {len(labels)} cells wide at stride {settings.stride}; "
                "there are no pairs of pixels to learn from. Take at least 11 cells (augment.crop)."
            )
        return {"image": view["image"], "labels": labels}

    # The walk ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def refine(self, image: base.Image, maps: ActivationMaps, options: Options, device: torch.device) -> ActivationMaps:
        """The maps, with a background before them, after 2^t steps of the walk; at the stride of the affinities."""
        stride = self.settings.stride
        alpha = alpha_for(maps, options.alpha)
        scores = torch.from_numpy(with_background(maps.upsampled(), alpha)).to(device)
        start = F.avg_pool2d(_padded(scores, stride), stride)
        padded_image = _padded(torch.from_numpy(normalise_image(image)).to(device), stride)
        affinities, radius = self.affinities(padded_image, options.all_pairs)
        beta = options.beta
        if options.most_affinity is not None:
            beta = raised_beta(affinities, beta, options.most_affinity, radius)
        walked = random_walk(
            start,
            affinities,
            radius=radius,
            beta=beta,
            steps=2**options.log2_steps,
            restart=options.restart,
        )
        labels = np.array([BACKGROUND, *maps.labels], np.int16)
        return ActivationMaps(labels, walked.clamp(0, 1).cpu().numpy(), maps.size, stride)

    def affinities(self, image: Tensor, all_pairs: bool = False) -> tuple[Tensor, int]:
        """One normalised image (3, H, W) to the affinities of its pairs (P, h, w), as `random_walk` takes them, and
        the pairs' radius."""
        features = self.features(image[None])
        size = (features.shape[-2], features.shape[-1])
        radius = reduced_radius(size)
        if all_pairs:
            # With a margin, first pixels lie anywhere in the map; the walk ignores pairs that leave it.
            margin = max(radius - 1, 0)
            return pair_affinities(F.pad(features, (margin, margin, 0, margin)), radius)[0].unflatten(-1, size), radius
        return lopsided_affinities(pair_affinities(features, radius)[0], size, radius), radius


def _reduction(channels: int, width: int, group_norm: bool) -> nn.Sequential:
    """1×1 convolution without bias, normalisation if asked for, ELU."""
    convolution = nn.Conv2d(channels, width, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    norms = [nn.GroupNorm(width // CHANNELS_PER_GROUP, width)] if group_norm else []
    return nn.Sequential(convolution, *norms, nn.ELU())


def _resized(features: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


def _padded(array: Tensor, stride: int) -> Tensor:
    """(…, H, W) with zeros to the right and below, up to multiples of `stride`."""
    height, width = array.shape[-2:]
    return F.pad(array, (0, -width % stride, 0, -height % stride))


# Labels ---------------------------------------------------------------------------------------------------------------


def view_labels(low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], stride: int) -> npt.NDArray[np.uint8]:
    """The affinity labels (h, w) of one view of the marginals (1 + K, H, W) that `AffinityNet.evidence` gives."""
    both = torch.as_tensor(np.concatenate([low, high]))
    cells = F.avg_pool2d(_padded(both, stride), stride).numpy()
    return affinity_labels(*np.split(cells, 2))


def affinity_labels(low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Labels (h, w) from two sets of scores (1 + K, h, w), background first: the place in the list of the class that
    wins in `low`; 0 where the background wins in `high`; void where neither, and where all scores are 0 (padding)."""
    labels = low.argmax(0).astype(np.uint8)
    labels[labels == BACKGROUND] = VOID
    labels[high.argmax(0) == BACKGROUND] = BACKGROUND
    labels[np.maximum(low.max(0), high.max(0)) < EPSILON] = VOID
    return labels


# Pairs and their loss -------------------------------------------------------------------------------------------------


class _PairAffinities(torch.autograd.Function):
    """exp(-mean |f_i - f_j|), one offset after the other; differences are computed again for the gradient, since all
    of them together would take gigabytes."""

    @staticmethod
    def forward(context: Any, features: Tensor, radius: int) -> Tensor:
        rows = [torch.exp(-(second - first).abs_().mean(1)) for first, second in shifted(features, radius)]
        affinities = torch.stack(rows, 1)
        context.radius = radius
        context.save_for_backward(features, affinities)
        return affinities

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, affinities = context.saved_tensors
        total = torch.zeros_like(features)
        slopes = -gradient * affinities / features.shape[1]
        views = zip(shifted(features, context.radius), shifted(total, context.radius), slopes.unbind(1), strict=True)
        for (first, second), (to_first, to_second), slope in views:
            step = torch.sign(second - first).mul_(slope[:, None])
            to_second += step
            to_first -= step
        return total, None


def pair_affinities(features: Tensor, radius: int) -> Tensor:
    """Features (N, C, h, w) to the affinities (N, P, n) of AffinityNet's pairs: a row for each offset, a column for
    each first pixel. Differentiable, float32; the memory is that of one offset's differences, not of all pairs'."""
    if radius < 2:
        return features.new_zeros(len(features), 0, features[0, 0].numel(), dtype=torch.float32)
    affinities: Tensor = _PairAffinities.apply(features.float(), radius)
    return affinities.flatten(2)


def pairs(labels: Tensor, radius: int) -> Pairs:
    """What the pairs of labels (N, h, w) uint8, 255 void, teach; (N, P, n) like `pair_affinities`."""
    kinds = zip(*(kinds_of_pairs(*ends) for ends in shifted(labels, radius)), strict=True)
    return Pairs(*(torch.stack(rows, 1).flatten(2) for rows in kinds))


def affinity_losses(affinities: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """The three terms of the loss, weighted, each a sum over its pairs."""
    alike = -torch.log(affinities + EPSILON)
    # In this order: where a = 1, the slope is that of float32's 1 + 1e-5.
    unlike = -torch.log((1 + EPSILON) - affinities)
    return {
        "background": (alike * pairs.background).sum() / 4,
        "foreground": (alike * pairs.foreground).sum() / 4,
        "different": (unlike * pairs.different).sum() / 2,
    }


# Published checkpoints ------------------------------------------------------------------------------------------------

_HEAD = re.compile(r"(f8|gn8)_([345])\.(weight|bias)")


def _own_name(name: str) -> str:
    """Our name of a tensor in the files of AffinityNet's authors."""
    if match := _HEAD.fullmatch(name):
        return f"reductions.{int(match[2]) - 3}.{int(match[1] == 'gn8')}.{match[3]}"
    return "combination.weight" if name == "f9.weight" else f"backbone.{name}"


def _read(state: Mapping[str, Tensor], backbone: str, group_norm: bool) -> base.Reading:
    settings = AffinityNet.Settings(
        backbone=BackboneSettings(name=backbone, output_stride=8, weights=None, frozen_stages=1), group_norm=group_norm
    )
    return base.Reading(settings, None, {_own_name(name): tensor for name, tensor in state.items()})


REFINER = AffinityNet
CHECKPOINTS = [
    base.Checkpoint(
        "affinitynet-resnet38",
        "AffinityNet with ResNet-38 (res38_aff.pth)",
        lambda names: {"b2.conv_branch1.weight", "f8_5.weight"} <= set(names),
        partial(_read, backbone="resnet38", group_norm=False),
    ),
    base.Checkpoint(
        "affinitynet-vgg16",
        "AffinityNet with VGG-16 (vgg16_aff.pth)",
        lambda names: {"conv5_3.weight", "f8_5.weight"} <= set(names),
        partial(_read, backbone="vgg16_affinity", group_norm=True),
    ),
]
