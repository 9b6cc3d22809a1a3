"""The networks of SPML: a backbone and a head that embed pixels, and a classifier of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg import parallel
from weakseg.data.opencv import scale_nearest
from weakseg.errors import WeaksegError
from weakseg.labels import UNLABELLED, VOID
from weakseg.methods import base
from weakseg.methods.spml.clustering import normalised, resize_by_corner
from weakseg.methods.spml.inference import (
    Windows,
    mean_over_views,
    over_scales,
    resized,
    scaled_views,
    unit_embeddings,
    windowed,
)
from weakseg.methods.spml.pseudo_labels import (
    SpreadOptions,
    activation_seed,
    affinity,
    cells_of,
    classifier_scores,
    halved_features,
    image_affinity,
    present_seed,
    propagated_scores,
    relabelled,
    shown,
    transition,
    view_features,
    walk,
)
from weakseg.methods.spml.retrieval import (
    LabelledSegments,
    RetrievalOptions,
    image_clusters,
    labelled_segments,
    retrieved_shares,
)
from weakseg.models.aspp import ASPP
from weakseg.models.norm import SharedBatchNorm2d, use_batch_statistics
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.activation import ActivationMaps, Views, normalise_image
from weakseg.ops.background import alpha_for

BIAS_FACTOR = 2
"""Learning rate of biases over that of weights."""
HEAD_MOMENTUM = 0.1
BACKBONE_MOMENTUM = 3e-4
PYRAMID_SIDES = (1, 2, 3, 6)
PYRAMID_WIDTH = 512


class EmbeddingSettings(base.Settings):
    """The network that embeds pixels. Defaults are the paper's for VOC."""

    backbone: BackboneSettings = Field(
        default=BackboneSettings(name="resnet101_deep_stem", output_stride=8, frozen_stages=2),
        description="the network whose features are used",
    )
    head: Literal["deeplab", "pspnet"] = Field(default="deeplab", description="what makes embeddings of features")
    rates: tuple[int, ...] = Field(
        default=(6, 12, 18, 24), min_length=1, description="dilation of the convolutions of the head deeplab, cells"
    )
    dimensions: int = Field(default=64, gt=0, description="of the embedding of a pixel")
    norm: Literal["batch", "fixed"] = Field(
        default="batch", description="statistics that the backbone's features are normalised with in training"
    )


class EmbeddingOptions(base.Settings):
    """How a trained network looks at images."""

    window: PositiveInt | None = Field(
        default=512, description="side of sliding windows, to which smaller images are padded; null: the whole image"
    )
    step: PositiveInt | None = Field(default=None, description="of the windows; null: their side")

    def windows(self) -> Windows:
        """The windows, of no size where the whole image is seen."""
        side, step = self.window or 0, self.step or self.window or 0
        return Windows((side, side), (step, step))


class EmbeddingSegmenter(base.Segmenter):
    """Pixels e(x) of a backbone's last features and a head, and a classifier of e / |e|."""

    Options: ClassVar[type[base.Settings]] = EmbeddingOptions

    def __init__(self, settings: Any, num_classes: int, dropout: float, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.num_classes = num_classes
        if num_classes >= UNLABELLED:
            raise WeaksegError(
                f"SPML needs the label {UNLABELLED} for unlabelled pixels, so that there are at most "
                f"{UNLABELLED - 1} classes; the data set has {num_classes}."
            )
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        if settings.norm == "batch":
            use_batch_statistics(self.backbone, BACKBONE_MOMENTUM, SharedBatchNorm2d)
        channels, dimensions = self.backbone.channels[-1], settings.dimensions
        self.head = (
            deeplab_head(channels, dimensions, settings.rates)
            if settings.head == "deeplab"
            else pspnet_head(channels, dimensions)
        )
        self.classifier = softmax_classifier(dimensions, 1 + num_classes, dropout)

    def embeddings(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to the embeddings of pixels (N, D, h, w), of any length, at twice the
        resolution of the last features: h = 2 ceil(H / 8) at stride 8."""
        if self.training and self.settings.norm == "batch":
            self._require_statistics(batch["image"])
        output = self.head(self.backbone(batch["image"])[-1])
        return F.interpolate(output, scale_factor=2, mode="bilinear", align_corners=False)

    def _require_statistics(self, images: Tensor) -> None:
        if len(images) * parallel.world_size() == 1 and self.backbone.output_size(images.shape[-2:]) == (1, 1):
            raise WeaksegError(
                "One image of one cell has no statistics to normalise with. Give a micro-batch more images "
                "(train.batch_size) or larger crops (augment.crop), or set model.norm to fixed."
            )

    def embedding_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """The size (h, w) of the embeddings of images of a size (H, W)."""
        height, width = self.backbone.output_size(size)
        return 2 * height, 2 * width

    def classified(self, embeddings: Tensor) -> Tensor:
        """Embeddings (N, D, h, w) of any length to scores (N, 1 + C, h, w)."""
        return self.classifier(normalised(embeddings.movedim(1, -1)).movedim(-1, 1))

    def logits(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to scores (N, 1 + C, h, w) at the size of the embeddings."""
        return self.classified(self.embeddings(batch))

    # Inference --------------------------------------------------------------------------------------------------------

    SpreadOptions: ClassVar[type[base.Settings]] = SpreadOptions
    RetrievalOptions: ClassVar[type[base.Settings]] = RetrievalOptions

    def pixel_embeddings(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to unit embeddings (N, D, H, W)."""
        return unit_embeddings(self._embedded)(images)

    def pixel_logits(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to scores (N, 1 + C, H, W): in inference the classifier sees the embeddings of
        all pixels, not those of the training's resolution."""
        return self.classifier(self.pixel_embeddings(images))

    @torch.inference_mode()
    def probabilities(
        self, views: Views, device: torch.device, mirrored: Sequence[int], *, mirror: bool
    ) -> Iterator[Tensor]:
        """The mean over views of the classifier's probabilities (1 + C, H, W), each from the mean of the scores of
        sliding windows."""
        yield from self._means(self._scores, views, device, mirrored if mirror else None, lambda maps: maps.softmax(0))

    def _means(
        self,
        scores: Callable[[Tensor], Tensor],
        views: Views,
        device: torch.device,
        mirrored: Sequence[int] | None,
        then: Callable[[Tensor], Tensor],
    ) -> Iterator[Tensor]:
        for number in range(len(views.scaled[0])):
            pictures = [scale[number].permute(2, 0, 1) for scale in views.scaled]
            yield mean_over_views(scores, pictures, views.size, device, mirrored, then)

    def _scores(self, image: Tensor) -> Tensor:
        windows = self.options.windows()
        return windowed(self.pixel_logits, image, windows)[:, : image.shape[1], : image.shape[2]]

    @torch.inference_mode()
    def spread(self, item: base.Item, maps: ActivationMaps | None, options: Any, device: torch.device) -> Tensor:
        """Scores (1 + C, H, W) of a walk over an image (see `methods.base.Spreading`)."""
        image = torch.from_numpy(normalise_image(item["image"])).to(device)
        labels, count, crop = item["labels"], 1 + self.num_classes, self.options.windows().crop
        size = (int(image.shape[1]), int(image.shape[2]))
        cells = cells_of(size)
        if options.seed == "points":
            half = halved_features(self._embedded, image, crop)
            affinities = affinity(resized(half[None], cells)[0])
            small = (int(half.shape[1]), int(half.shape[2]))
            partial, regions = (
                resize_by_corner(torch.from_numpy(ids.astype(np.int64))[None].to(device), small)[0]
                for ids in (np.where(labels == VOID, UNLABELLED, labels), item["regions"])
            )
            scores = propagated_scores(half, partial, regions, count, options.grid)
            seed = present_seed(resized(scores[None], cells)[0], shown(labels, count))
        else:
            views = list(scaled_views(image, options.scales, mirror=options.mirror))
            features = [view_features(self._embedded, view, crop, mirrored=turned) for view, turned in views]
            affinities = image_affinity(features, cells)
            if options.seed == "activations":
                assert maps is not None
                activations = torch.from_numpy(maps.unsigned().upsampled()).to(device)
                alpha = alpha_for(maps, options.alpha)
                seed = activation_seed(activations, maps.labels.tolist(), count, cells, alpha)
            else:
                logits = [view_features(self.pixel_logits, view, crop, mirrored=turned) for view, turned in views]
                seed = present_seed(classifier_scores(logits, cells, options.average), shown(labels, count))
        return resized(walk(seed, transition(affinities), options.steps)[None], size)[0]

    @torch.inference_mode()
    def remember(self, item: base.Item, options: Any, device: torch.device) -> dict[str, npt.NDArray[Any]]:
        """Prototypes and labels of the clusters of an image (see `methods.base.Remembering`)."""
        image = torch.from_numpy(normalise_image(item["image"])).to(device)
        parts = []
        for view, _ in scaled_views(image, options.memory_scales, mirror=False):
            size = (int(view.shape[1]), int(view.shape[2]))
            found = windowed(self.pixel_embeddings, view, self.options.windows())
            clusters = image_clusters(found, options.grid, inside=size)
            labels = torch.from_numpy(scale_nearest(item["labels"], size)).to(device)
            parts.append(labelled_segments(found[:, : size[0], : size[1]], clusters, labels))
        known = [part.of_classes(1 + self.num_classes) for part in parts]
        return {
            "prototypes": torch.cat([part.prototypes for part in known]).cpu().numpy(),
            "labels": torch.cat([part.labels for part in known]).cpu().numpy(),
        }

    @torch.inference_mode()
    def retrieve(
        self,
        image: base.Image,
        present: Collection[int],
        memory: Mapping[str, Tensor],
        options: Any,
        device: torch.device,
    ) -> Tensor:
        """Shares (1 + C, H, W) of the labels of the most similar segments, those of present classes over their
        largest (see `methods.base.Remembering`)."""
        view = torch.from_numpy(normalise_image(image)).to(device)
        known = LabelledSegments(memory["prototypes"], memory["labels"])

        def shares(view: Tensor) -> Tensor:
            return self._shares(view, known, options)

        return relabelled(over_scales(shares, view, options.scales, mirror=options.mirror), present)

    def _shares(self, view: Tensor, known: LabelledSegments, options: Any) -> Tensor:
        """Shares (1 + C, h, w) of the labels of the segments that are most similar to those of a view (3, h, w)."""
        found = windowed(self.pixel_embeddings, view, self.options.windows())[:, : view.shape[1], : view.shape[2]]
        clusters = image_clusters(found, options.grid)
        return retrieved_shares(found, clusters, known, 1 + self.num_classes, options.neighbours)

    def _embedded(self, images: Tensor) -> Tensor:
        return self.embeddings({"image": images})


# Heads ----------------------------------------------------------------------------------------------------------------


def deeplab_head(channels: int, dimensions: int, rates: tuple[int, ...]) -> ASPP:
    """The sum of parallel dilated convolutions, initialised as PyTorch does."""
    head = ASPP(channels, dimensions, rates)
    for convolution in head.classifiers():
        convolution.reset_parameters()
    return head


def pspnet_head(channels: int, dimensions: int, width: int = PYRAMID_WIDTH) -> nn.Sequential:
    """Pyramid pooling (Zhao et al., CVPR 2017, section 3.2) and a 1×1 convolution."""
    return nn.Sequential(PyramidPooling(channels, width), nn.Conv2d(width, dimensions, 1))


class PyramidPooling(nn.Module):
    """Features (N, C, h, w) beside their means over 1, 4, 9 and 36 parts of the image, to (N, width, h, w)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        for number, side in enumerate(PYRAMID_SIDES, start=1):
            self.add_module(
                f"pspp_{number}",
                nn.Sequential(
                    nn.AdaptiveAvgPool2d(side),
                    nn.Conv2d(channels, width, 1, bias=False),
                    SharedBatchNorm2d(width, momentum=HEAD_MOMENTUM),
                    nn.ReLU(inplace=True),
                ),
            )
        self.conv = nn.Sequential(
            nn.Conv2d(channels + len(PYRAMID_SIDES) * width, width, 3, padding=1, bias=False),
            SharedBatchNorm2d(width, momentum=HEAD_MOMENTUM),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        if self.training and len(features) * parallel.world_size() == 1:
            raise WeaksegError(
                "The head pspnet normalises a mean over the whole image, of which one image has no statistics. Give a "
                "micro-batch more images (train.batch_size) or set model.head to deeplab."
            )
        pooled = [part for name, part in self.named_children() if name != "conv"]
        size = features.shape[-2:]
        parts = [F.interpolate(part(features), size, mode="bilinear", align_corners=False) for part in pooled]
        return self.conv(torch.cat([features, *parts], dim=1))


# Classifier -----------------------------------------------------------------------------------------------------------


def softmax_classifier(dimensions: int, outputs: int, dropout: float) -> nn.Sequential:
    """Unit vectors (N, D, h, w) to scores (N, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(dimensions, 2 * dimensions, 3, padding=1, bias=False),
        SharedBatchNorm2d(2 * dimensions, momentum=HEAD_MOMENTUM),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(2 * dimensions, outputs, 1),
    )
