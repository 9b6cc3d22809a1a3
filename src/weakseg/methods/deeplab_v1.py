"""DeepLab v1: a segmenter with one classifier of a large field of view.

Chen, Papandreou, Kokkinos, Murphy, Yuille, "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015 (arXiv 1412.7062), in two forms. With features f(x) of an image x at a stride of 8 pixels:

    wide:    s(x) = w * dropout(relu(norm(w_2 * relu(norm(w_1 *_12 f(x))))))      3×3 with dilation 12, 1×1, 1×1
    narrow:  s(x) = w * dropout(f(x))                                             1×1
    L        = - mean over pixels p that are not void of log softmax(s_p(x))[y_p]

The wide form on ResNet-38 is what SEAM (Wang et al., CVPR 2020, arXiv 2004.04581) trains on its pseudo-masks. There the
scores are resized to the image, corner to corner, and *all* batch normalisation uses the statistics of the batch.
The narrow form is for backbones that have the large field of view themselves, such as "vgg16_largefov" (section 3.2
of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.methods import base
from weakseg.methods.crossentropy import Place, cross_entropy, labelled_pixels
from weakseg.models.norm import FixedBatchNorm2d, use_batch_statistics
from weakseg.models.rates import caffe_param_groups
from weakseg.models.registry import BackboneSettings, build_backbone

WIDTH = 512
DILATION = 12


class DeepLabV1(base.Segmenter):
    """A backbone and a head. `num_classes` is C, without the background.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """Defaults are those of SEAM's program. The head learns `head_lr_factor` times as fast as the backbone.

        Normalisation with the statistics of the "batch" needs batches of several images; "fixed" does not. Either way
        its scales and shifts do not learn. `loss_at` says whether labels come down to the scores ("output") or scores
        up to the labels ("image").
        """

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet38", output_stride=8),
            description="the network whose features are used",
        )
        head: Literal["wide", "narrow"] = Field(default="wide", description="narrow: a 1×1 classifier alone")
        norm: Literal["batch", "fixed"] = Field(
            default="batch", description="statistics that features are normalised with"
        )
        norm_momentum: float = Field(default=3e-4, gt=0, le=1, description="of the running statistics")
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")
        loss_at: Place = Field(
            default="image",
            description="whether labels come down to the scores (nearest, or majority) or scores up to the labels",
        )

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        channels = self.backbone.channels[-1]
        if settings.head == "wide":
            self.conv_fov = nn.Conv2d(channels, WIDTH, 3, padding=DILATION, dilation=DILATION, bias=False)
            self.bn_fov = FixedBatchNorm2d(WIDTH)
            self.conv_fov2 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
            self.bn_fov2 = FixedBatchNorm2d(WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.cls_conv = nn.Conv2d(WIDTH if settings.head == "wide" else channels, 1 + num_classes, 1)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.head():
            if self.settings.head == "wide":
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
        if self.settings.norm == "batch":
            use_batch_statistics(self, self.settings.norm_momentum)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def head(self) -> list[nn.Conv2d]:
        """The convolutions that the backbone's weights do not cover."""
        return [self.conv_fov, self.conv_fov2, self.cls_conv] if self.settings.head == "wide" else [self.cls_conv]

    def scores(self, images: Tensor) -> Tensor:
        """Scores (N, 1 + C, h, w) at the stride of the backbone."""
        x = self.backbone(images)[-1]
        if self.settings.head == "wide":
            x = F.relu(self.bn_fov(self.conv_fov(x)))
            x = F.relu(self.bn_fov2(self.conv_fov2(x)))
        return self.cls_conv(self.dropout(x))

    def logits(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to scores (N, 1 + C, H, W), corner to corner."""
        images = batch["image"]
        return F.interpolate(self.scores(images), images.shape[-2:], mode="bilinear", align_corners=True)

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """Cross entropy, summed over the pixels with a label.

        Raises `WeaksegError` for labels that are neither 0 … C nor void, and for a batch that has no statistics.
        """
        images, labels = batch["image"], batch["labels"]
        if self.settings.norm == "batch" and self.training and len(images) == 1:
            self._require_statistics(images)
        return {"segmentation": cross_entropy(self.scores(images), labels, self.settings.loss_at, align_corners=True)}

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        """The pixels with a label, where scores and labels meet."""
        labels = batch["labels"]
        return {
            "segmentation": labelled_pixels(labels, self.backbone.output_size(labels.shape[-2:]), self.settings.loss_at)
        }

    def _require_statistics(self, images: Tensor) -> None:
        if max(images.shape[-2:]) <= self.backbone.strides[-1]:
            raise WeaksegError(
                "One image of one cell has no statistics to normalise with. Give a micro-batch more images "
                "(train.batch_size) or larger crops (augment.crop), or set model.norm=fixed."
            )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Weights and biases of backbone and head; biases learn twice as fast and do not decay. The scales and shifts
        of batch normalisation are in no group."""
        return caffe_param_groups(self, self.head(), lr, self.settings.head_lr_factor)


def read_seam_retrain(state: Mapping[str, Tensor]) -> base.Reading:
    """A `DeepLabV1` of the wide form on ResNet-38 from SEAM's checkpoint, whose names are ours."""
    if "cls_conv.bias" not in state:
        raise WeaksegError("it has no classifier cls_conv")
    settings = DeepLabV1.Settings(backbone=BackboneSettings(name="resnet38", output_stride=8, weights=None))
    inference = {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "mirror": True, "crf": "seam_retrain"}
    return base.Reading(settings, len(state["cls_conv.bias"]) - 1, state, inference=inference)


SEGMENTER = DeepLabV1
CHECKPOINTS = [
    base.Checkpoint(
        "seam-deeplab-v1",
        "SEAM's DeepLab v1 with ResNet-38",
        lambda names: {"backbone.conv1a.weight", "conv_fov.weight"} <= set(names),
        read_seam_retrain,
    )
]
