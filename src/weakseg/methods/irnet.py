"""IRNet: learns boundaries between classes from pairs of pixels, and lets activation maps walk up to them.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(arXiv 1904.05044).

Two thresholds on the activation maps, each followed by a dense CRF, say what is surely a thing (high threshold) and
what is surely background (low threshold); the rest is void (section 4.1 of the paper). On the features of a backbone
that does not learn, two light branches are trained from pairs (i, j) of pixels less than 10 cells apart (sections 3 and
4.2): a boundary map B in (0, 1), of which only the strongest value on the way from i to j counts,

    a_ij  = 1 - max { B_k : k on the path from i to j }
    L_aff = - ¼ mean_{P_bg} log a_ij  - ¼ mean_{P_fg} log a_ij  - ½ mean_{P_neg} log(1 - a_ij)

and a field D of displacements, (y, x) in cells, which should lead from every pixel to the centre of its instance, so
that two pixels of one thing meet and background does not move:

    L_dis = ½ mean_{P_fg} |D_i - D_j - (j - i)|  + ½ mean_{P_bg} |D_i - D_j|        (means over pairs and y, x)

P_bg: both are background, P_fg: both of one class, P_neg: of two. Nobody has drawn a boundary or a centre.

The maps walk at random between pixels less than 5 cells apart, 2^t steps, and boundaries stop them (section 5.2):

    v' = (v ⊙ (1 - B)) · T^(2^t),    T = A / colsum(A),  A_ij = a_ij^β,  A_ii = 1

The result is divided by its largest value; the background is a threshold. Equations are those of the authors' program.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.labels import BACKGROUND, VOID, label_array
from weakseg.methods import base
from weakseg.models.originals import irnet_backbone_name, rename_copies
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.activation import ActivationMaps, normalise_image, resize_image
from weakseg.ops.background import (
    SURELY_BACKGROUND,
    SURELY_FOREGROUND,
    alpha_for,
    threshold_of,
    with_falling_background,
)
from weakseg.ops.crf_parameters import PARAMETERS, known_parameters
from weakseg.ops.crf_unary import unary_from_labels
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.fields import LABELS, ImageField
from weakseg.ops.instances import Instances, centroids, clusters, connected_instances
from weakseg.ops.pairs import count_pairs
from weakseg.ops.pairsums import pair_sums
from weakseg.ops.randomwalk import boundary_walk
from weakseg.ops.resize import resize_labels
from weakseg.parallel import gather

STRIDE = 4
"""Pixels of the image per cell of the boundary map, the displacements and the labels."""

CERTAINTY = 0.7
"""Probability of the label that a threshold gives, before the dense CRF."""

CANVAS_MULTIPLE = 16

Threshold = Annotated[float, Field(ge=0, le=1)] | Literal["adaptive"]
"""A background's score; adaptive: as suits each image's maps."""

logger = logging.getLogger(__name__)


class IRNet(base.Refiner):
    """A backbone that does not learn, and the two branches. It knows nothing of classes.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """The displacements learn `displacement_lr_factor` times as fast as the boundaries. Defaults are those of the
        paper's program. No stage of the backbone learns, whatever its `frozen_stages`.

        Group normalisation looks at the whole picture, so the size of the `canvas` on which an image is laid, at least,
        is a part of the function.
        """

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet50", output_stride=16, dilated=False, frozen_stages=5),
            description="the network whose features are used",
        )
        radius: int = Field(default=10, ge=2, description="two pixels that are fewer cells apart are a pair")
        foreground_threshold: Threshold = Field(default=0.30, description="above it is surely a thing")
        background_threshold: Threshold = Field(default=0.05, description="below it is surely background")
        crf: Annotated[str, AfterValidator(known_parameters)] = Field(
            default="irnet", description="the set of CRF parameters that makes labels of the maps"
        )
        displacement_lr_factor: float = Field(
            default=10.0, gt=0, description="learning rate of the displacements, as a multiple of lr"
        )
        canvas: int = Field(default=512, ge=0, description="pixels; larger images get the next multiple of 16")

    class WalkOptions(base.Settings):
        """How scores walk. Defaults are those of the paper's program."""

        radius: int = Field(default=5, ge=2, description="cells that a step of the walk reaches, less one")
        beta: float = Field(default=10.0, gt=0, description="power of the affinities: large keeps to the surest paths")
        log2_steps: int = Field(default=8, ge=0, le=16, description="the walk has 2^log2_steps steps")
        restart: float = Field(
            default=0.0,
            ge=0,
            lt=1,
            description="probability to begin anew where the walk came from, at each step: large stays near the maps",
        )
        enlargement: Literal[1, 2, 4] = Field(
            default=1, description="of the image, whose boundaries are finer then; maps walk in smaller cells"
        )

    class Options(WalkOptions):
        """Without a background of their own, maps are divided by their largest value."""

        own_background: bool = Field(
            default=False,
            description="a background walks along, as strong as suits each image's maps; false: as in the paper",
        )

    class InstanceOptions(WalkOptions):
        """How instances are told apart. Defaults are those of the paper's program."""

        background: float = Field(default=0.25, gt=0, le=1, description="the background's score after the walk")
        centroid_steps: int = Field(default=300, ge=0, description="how often the displacements are followed")
        still: float = Field(default=2.5, gt=0, description="shorter displacements are a centroid's; in cells")
        min_share: float = Field(default=0.01, ge=0, le=1, description="of the image; smaller instances score 0")

    fields: ClassVar[Mapping[str, ImageField]] = {"labels": LABELS}

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        frozen = settings.backbone.model_copy(update={"frozen_stages": 5})
        self.backbone = build_backbone(frozen, load_weights=load_weights)
        self.boundary = BoundaryBranch(self.backbone.channels, self.backbone.strides)
        self.displacement = DisplacementBranch(self.backbone.channels, self.backbone.strides)

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """Sums over pairs, for `image` (N, 3, H, W) and `labels` (N, ceil(H / 4), ceil(W / 4)) uint8, 255 void."""
        features = self.features(batch["image"])
        logits, field = self.boundary(features), self.displacement(features)
        return pair_losses(torch.sigmoid(logits.float()), field.float(), batch["labels"], self.settings.radius)

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """The pairs of each kind; for displacements, which have two axes, twice as many."""
        background, foreground, different = count_pairs(batch["labels"], self.settings.radius)
        return {
            "boundary_background": background,
            "boundary_foreground": foreground,
            "boundary_between": different,
            "displacement_foreground": 2 * foreground,
            "displacement_background": 2 * background,
        }

    def features(self, images: Tensor) -> list[Tensor]:
        """What the branches look at, from normalised images (N, 3, H, W): the backbone's five stages. The first has
        half the resolution of its max-pooling, that of the second."""
        with torch.no_grad():
            first, *others = self.backbone(images)
            return [F.max_pool2d(first, 3, stride=2, padding=1), *others]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Boundaries and displacements."""
        return [
            {"params": list(self.boundary.parameters()), "lr": lr},
            {"params": list(self.displacement.parameters()), "lr": lr * self.settings.displacement_lr_factor},
        ]

    @torch.no_grad()
    def conclude(self, items: Iterable[base.Item], device: torch.device) -> None:
        """Measure the mean displacement over all processes' images; it is subtracted from now on, in evaluation."""
        self.displacement.mean.zero_()
        means = [self._mean_displacement(item["image"], device) for item in items]
        total = torch.stack([torch.zeros(2), *(mean.cpu() for mean in means)]).sum(0)
        totals, counts = zip(*gather((total, len(means))), strict=True)
        self.displacement.mean += (torch.stack(totals).sum(0) / max(1, sum(counts))).to(device)

    def _mean_displacement(self, image: base.Image, device: torch.device) -> Tensor:
        displacements: Tensor = self.displacement(self.features(self._on_canvas([image], device)))
        return displacements.mean((0, 2, 3))

    # What is learned from an image ------------------------------------------------------------------------------------

    @staticmethod
    def evidence(settings: Settings, image: base.Image, maps: ActivationMaps) -> dict[str, npt.NDArray[Any]]:
        """`labels` (H, W) uint8: what is surely a thing, surely background, or neither (void)."""
        thresholds = (
            evidence_threshold(maps, settings.foreground_threshold, SURELY_FOREGROUND),
            evidence_threshold(maps, settings.background_threshold, SURELY_BACKGROUND),
        )
        things, not_background = confident_labels(image, maps.upsampled(), thresholds, settings.crf)
        labels = label_array([BACKGROUND, *maps.labels])
        return {"labels": combined_labels(labels[things], labels[not_background])}

    @classmethod
    def prepare(cls, settings: Settings, view: base.Item) -> base.Item:
        """The `labels` of a view are brought to the size of the boundary map, (crop / 4, crop / 4), rounded up."""
        side = -(-view["image"].shape[-1] // STRIDE)
        return {**view, "labels": resize_labels(view["labels"], (side, side))}

    # The walk ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def refine(self, image: base.Image, maps: ActivationMaps, options: Options, device: torch.device) -> ActivationMaps:
        """The maps after 2^t steps of the walk: with a background before them, or divided by the largest value of all
        of them at the size of the image.

        Where a peak is narrow, a cell exceeds that value. It is cut to 1, since maps are stored in [0, 1].
        """
        maps = in_finer_cells(maps, options.enlargement)
        boundary = self.boundary_map(image, device, options.enlargement)
        if options.own_background:
            return walk(with_falling_background(maps), boundary, options)
        walked = relative_to_largest(walk(maps, boundary, options))
        return replace(walked, maps=np.minimum(walked.maps, 1))

    @torch.no_grad()
    def instances(
        self, image: base.Image, maps: ActivationMaps, options: InstanceOptions, device: torch.device
    ) -> Instances:
        """The instances of the classes in the maps: those pixels walk whose displacements lead to one centroid."""
        maps = in_finer_cells(maps, options.enlargement)
        boundary, displacements = self.relations(image, device, options.enlargement)
        field = displacements.cpu().numpy()
        masks = clusters(field, centroids(field, options.centroid_steps), options.still)
        apart = (maps.maps[:, None] * masks).reshape(-1, *masks.shape[1:])
        labels = np.repeat(maps.labels, len(masks))
        walked = relative_to_largest(walk(ActivationMaps(labels, apart, maps.size, maps.stride), boundary, options))
        return separated(walked, options.background, options.min_share)

    @torch.no_grad()
    def boundary_map(self, image: base.Image, device: torch.device, enlargement: int = 1) -> Tensor:
        """The boundary map (h, w) in (0, 1) of an image that is enlarged before, h = ceil(H · enlargement / 4)."""
        return self._boundaries(*self._look(image, device, enlargement))

    @torch.no_grad()
    def relations(self, image: base.Image, device: torch.device, enlargement: int = 1) -> tuple[Tensor, Tensor]:
        """The boundary map (h, w), and displacements (2, h, w)."""
        features, (height, width) = self._look(image, device, enlargement)
        field = self.displacement([stage[:1] for stage in features])[0, :, :height, :width]
        return self._boundaries(features, (height, width)), field

    def _boundaries(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """The mean of the logits of an image and its mirror image."""
        height, width = size
        logits = self.boundary(features)[:, :height, :width]
        return torch.sigmoid((logits[0] + logits[1].flip(1)) / 2)

    def _look(
        self, image: base.Image, device: torch.device, enlargement: int
    ) -> tuple[Sequence[Tensor], tuple[int, int]]:
        """The features of an enlarged image and its mirror image, and how many cells the image has."""
        if max(image.shape[:2]) > self.settings.canvas > 0:
            warn_of_larger_images(self.settings.canvas)
        image = resize_image(image, enlargement)
        features = self.features(self._on_canvas([image, image[:, ::-1]], device))
        return features, (-(-image.shape[0] // STRIDE), -(-image.shape[1] // STRIDE))

    def _on_canvas(self, images: Sequence[base.Image], device: torch.device) -> Tensor:
        """Normalised images of one size, (N, 3, at least canvas, at least canvas), in the upper left of mean colour."""
        height, width = images[0].shape[:2]
        rows, columns = (
            max(self.settings.canvas, -(-side // CANVAS_MULTIPLE) * CANVAS_MULTIPLE) for side in (height, width)
        )
        batch = torch.from_numpy(np.stack([normalise_image(image) for image in images]))
        return F.pad(batch, (0, columns - width, 0, rows - height)).to(device)


def evidence_threshold(maps: ActivationMaps, threshold: float | Literal["adaptive"], factor: float) -> float:
    """`threshold`, or where a background `factor` times the power that suits the image is as strong as the classes."""
    return threshold_of(alpha_for(maps, factor=factor)) if threshold == "adaptive" else threshold


@cache
def warn_of_larger_images(canvas: int) -> None:
    """Say once that the statistics of some images are others than what the network was made for."""
    logger.warning(
        "Some images are larger than the canvas of %d pixels: group normalisation sees others there.", canvas
    )


# The two branches -----------------------------------------------------------------------------------------------------


class Reduction(nn.Sequential):
    """A 1×1 convolution, group normalisation, bilinear enlargement by a whole factor, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, factor: int = 1) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(groups, out_channels))
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        convolution, norm = self
        # PyTorch's statistics of a group are thirty times as exact in this layout (large canvas, mostly empty).
        reduced: Tensor = norm(convolution(features).contiguous())
        if self.factor > 1:
            reduced = F.interpolate(reduced, scale_factor=self.factor, mode="bilinear", align_corners=False)
        return F.relu(reduced)


def joined(first: Tensor, *others: Tensor) -> Tensor:
    """Features one after the other, all cropped to the size of the first, which they may exceed right and below."""
    height, width = first.shape[2:]
    return torch.cat([first, *(features[:, :, :height, :width] for features in others)], 1)


class BoundaryBranch(nn.Module):
    """Features of five stages to the logits of the boundary map (N, h, w) at the resolution of the second."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        factors = [1, *(stride // strides[1] for stride in strides[1:])]
        self.reductions = nn.ModuleList(
            Reduction(width, 32, 4, factor) for width, factor in zip(channels, factors, strict=True)
        )
        self.logits = nn.Conv2d(5 * 32, 1, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        # The second stage is never enlarged; what is joined to it may be larger, not smaller.
        first, second, *others = (reduce(x) for reduce, x in zip(self.reductions, features, strict=True))
        height, width = second.shape[2:]
        logits: Tensor = self.logits(joined(first[:, :, :height, :width], second, *others))
        return logits[:, 0]


class DisplacementBranch(nn.Module):
    """Features of five stages to displacements (N, 2, h, w), (y, x), at the resolution of the second.

    In evaluation mode their `mean` over many images is subtracted.
    """

    mean: Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        widths, groups = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)
        factors = [1, 1, *(stride // strides[2] for stride in strides[2:])]
        self.reductions = nn.ModuleList(
            Reduction(*sizes) for sizes in zip(channels, widths, groups, factors, strict=True)
        )
        self.coarse = Reduction(3 * 256, 256, 16, strides[2] // strides[1])
        self.fine = Reduction(64 + 128 + 256, 256, 16)
        self.vectors = nn.Conv2d(256, 2, 1, bias=False)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        first, second, *coarse = (reduce(x) for reduce, x in zip(self.reductions, features, strict=True))
        vectors: Tensor = self.vectors(self.fine(joined(first, second, self.coarse(joined(*coarse)))))
        return vectors if self.training else vectors - self.mean[:, None, None]


# Labels ---------------------------------------------------------------------------------------------------------------


def confident_labels(
    image: base.Image, maps: npt.NDArray[np.float32], thresholds: Sequence[float], crf: str
) -> list[npt.NDArray[np.intp]]:
    """For each threshold, what wins in maps (K, H, W) against it after a dense CRF: places 1 … K, 0 where nothing."""
    if len(maps) == 0:
        return [np.zeros(image.shape[:2], np.intp) for _ in thresholds]
    winners = [over_threshold(maps, threshold) for threshold in thresholds]
    unaries = [unary_from_labels(winner, len(maps) + 1, CERTAINTY) for winner in winners]
    return [marginals.argmax(0) for marginals in dense_crf(image, unaries, PARAMETERS[crf])]


def over_threshold(maps: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.intp]:
    """1 + the place of the largest of maps (K, H, W), 0 where none is above the threshold."""
    return np.where(maps.max(0) > threshold, maps.argmax(0) + 1, 0)


def combined_labels(things: npt.NDArray[np.uint8], not_background: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What is surely a thing keeps its label, the rest is void, except for what is surely background."""
    return np.where((things == BACKGROUND) & (not_background != BACKGROUND), np.uint8(VOID), things)


# Pairs and their losses -----------------------------------------------------------------------------------------------


def pair_losses(boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> dict[str, Tensor]:
    """The terms of the losses from a boundary map (N, h, w) in [0, 1], displacements (N, 2, h, w) and labels (N, h, w),
    weighted, each a sum over its pairs. A map that is too small (see `ops.pairs`) has none.
    """
    sums = _PairSums.apply(boundary, field, labels, radius)
    background, foreground, different, fg_displacement, bg_displacement = sums
    return {
        "boundary_background": background / 4,
        "boundary_foreground": foreground / 4,
        "boundary_between": different / 2,
        "displacement_foreground": fg_displacement / 2,
        "displacement_background": bg_displacement / 2,
    }


class _PairSums(torch.autograd.Function):
    """`ops.pairsums.pair_sums`, whose gradients are maps that are found along with the sums."""

    @staticmethod
    def forward(context: Any, boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> tuple[Tensor, ...]:
        found = pair_sums(boundary.float(), field.float(), labels, radius)
        context.save_for_backward(found.to_boundary, found.to_field)
        return found.sums.float().unbind()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_boundary, to_field = context.saved_tensors
        of_sums = torch.stack(gradients)
        return torch.tensordot(of_sums[:3], to_boundary, 1), torch.tensordot(of_sums[3:], to_field, 1), None, None


# The walk -------------------------------------------------------------------------------------------------------------


def in_finer_cells(maps: ActivationMaps, enlargement: int) -> ActivationMaps:
    """The maps in the cells of an enlarged image's boundaries. Raises `WeaksegError` for maps of another stride."""
    if maps.stride != STRIDE:
        raise WeaksegError(
            f"IRNet walks on maps of stride {STRIDE}, these have stride {maps.stride}. Set the stride of the stage "
            f"that makes them to {STRIDE}."
        )
    return maps.at_stride(STRIDE // enlargement)


def walk(maps: ActivationMaps, boundary: Tensor, options: IRNet.WalkOptions) -> ActivationMaps:
    """Maps after 2^t steps of the walk that a boundary map (h, w) of their size blocks."""
    start = torch.as_tensor(maps.maps, dtype=torch.float32).to(boundary.device)
    steps = 2**options.log2_steps
    walked = boundary_walk(
        start, boundary, radius=options.radius, beta=options.beta, steps=steps, restart=options.restart
    )
    return ActivationMaps(maps.labels, walked.cpu().numpy(), maps.size, maps.stride)


def relative_to_largest(maps: ActivationMaps) -> ActivationMaps:
    """Maps divided by the largest value that any of them has at the size of the image; zeros stay zeros. Single cells
    may exceed 1."""
    largest = maps.upsampled().max(initial=0)
    return replace(maps, maps=maps.maps / (largest or 1))


def separated(maps: ActivationMaps, background: float, min_share: float) -> Instances:
    """The connected pixels that each of the maps (one for each class and cluster) wins against all others and the
    background."""
    scores = maps.upsampled()
    winners = over_threshold(scores, background) if len(scores) else np.zeros(maps.size, np.intp)
    winning = [int(place) - 1 for place in np.unique(winners[winners > 0])]
    return connected_instances(
        (scores[place] for place in winning),
        (winners == place + 1 for place in winning),
        (int(maps.labels[place]) for place in winning),
        maps.size,
        min_share * scores[0].size if winning else 0,
    )


# The authors' file ----------------------------------------------------------------------------------------------------

_BACKBONE_PARTS = {
    (1, 0): "conv1", (1, 1): "bn1", (2, 0): "layer1", (3, 0): "layer2", (4, 0): "layer3", (5, 0): "layer4",
}  # fmt: skip
_HEADS = {
    "edge": [*(f"boundary.reductions.{k}" for k in range(5)), "boundary.logits"],
    "dp": [*(f"displacement.reductions.{k}" for k in range(5)), "displacement.coarse", "displacement.fine"],
}
# The last of the displacement's heads goes on after its ReLU.
_AFTER_HEADS = {
    "displacement.fine.3.weight": "displacement.vectors.weight",
    "displacement.fine.4.running_mean": "displacement.mean",
}


def read_irnet(state: Mapping[str, Tensor]) -> base.Reading:
    """An `IRNet` with the backbone "resnet50" from a checkpoint of the authors' network.

    Raises `WeaksegError` for names that such a file does not have, and for copies of one tensor that differ. Indices of
    paths and targets of displacements, which it holds too, are constants and ignored.
    """
    renamed = rename_copies(state, _own_name, ignored=r"path_indices\d+|disp_target")
    settings = IRNet.Settings()
    settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"weights": None})})
    return base.Reading(settings, None, renamed.state, renamed.ignored)


def _own_name(name: str) -> str | None:
    """Our name of a tensor of the authors' file; None for a name that it does not have."""
    if name == "mean_shift.running_mean":
        return "displacement.mean"
    if match := re.fullmatch(r"(?:fc_(edge|dp)(\d)|(edge|dp)_layers\.(\d))\.(.+)", name):
        branch, place = (match[1], int(match[2]) - 1) if match[1] else (match[3], int(match[4]))
        if not 0 <= place < len(_HEADS[branch]):
            return None
        own = f"{_HEADS[branch][place]}.{match[5]}"
        return _AFTER_HEADS.get(own, own)
    part = irnet_backbone_name(name, _BACKBONE_PARTS)
    return part and f"backbone.{part}"


REFINER = IRNet
CHECKPOINTS = [
    base.Checkpoint(
        "irnet",
        "IRNet's network of boundaries and displacements (res50_irn.pth)",
        lambda names: {"fc_edge6.weight", "fc_dp7.3.weight"} <= set(names),
        read_irnet,
    )
]
