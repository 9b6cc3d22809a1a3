"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from weakseg.errors import WeaksegError
from weakseg.models.backbone import Backbone
from weakseg.models.deeplab_resnet import DeepLabResNet, multi_grid_resnet101
from weakseg.models.mobilenet import MobileNetV2
from weakseg.models.resnet import resnet18, resnet50, resnet101, resnet101_deep_stem
from weakseg.models.resnet38 import ResNet38
from weakseg.models.vgg import VGG16, VGG16ICD, VGG16Affinity, VGG16LargeFOV
from weakseg.models.weights import imagenet_weights, load_weights
from weakseg.settings import Settings, did_you_mean


def _small(output_stride: int, dilated: bool) -> Backbone:
    from weakseg.models.small import SmallResNet

    if not dilated:
        raise WeaksegError('The backbone "small" has no version without dilation. Leave dilated at true.')
    return SmallResNet(output_stride=output_stride)


BACKBONES: dict[str, Callable[[int, bool], Backbone]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet101_deep_stem": resnet101_deep_stem,
    "deeplab_resnet101": DeepLabResNet,
    "deeplab_resnet101_multi_grid": multi_grid_resnet101,
    "resnet38": ResNet38,
    "vgg16": VGG16,
    "vgg16_affinity": VGG16Affinity,
    "vgg16_largefov": VGG16LargeFOV,
    "vgg16_icd": VGG16ICD,
    "mobilenet_v2": MobileNetV2,
    "small": _small,
}


class BackboneSettings(Settings):
    """A backbone, the stride of its last stage, and what it starts from."""

    name: str = Field(default="resnet50", description=f"one of {', '.join(BACKBONES)}")
    output_stride: Literal[8, 16, 32] = Field(default=16, description="pixels of the image per cell of the last stage")
    dilated: bool = Field(
        default=True,
        description="late stages that lose their stride dilate instead, to keep the context they were trained for",
    )
    weights: str | None = Field(
        default="imagenet",
        description='"imagenet" (torchvision\'s, downloaded once), the path of a .pth or .safetensors file with '
        "torchvision's names or of one of the originals in docs/backbones.md, or null: random",
    )
    frozen_stages: int = Field(
        default=0, ge=0, le=5, description="how many of the five stages, from the first, do not learn"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in BACKBONES:
            hint = did_you_mean(name, BACKBONES)
            raise ValueError(f"There is no such backbone.{hint} The backbones are: {', '.join(BACKBONES)}")
        return name


def build_backbone(settings: BackboneSettings, load_weights: bool = True) -> Backbone:
    """The backbone of `settings`, its first stages frozen. `load_weights=False` leaves it random, for a caller who
    fills it from a checkpoint. Raises `WeaksegError` where weights cannot be had or do not fit."""
    backbone = BACKBONES[settings.name](settings.output_stride, settings.dilated)
    if load_weights and settings.weights is not None:
        _load(backbone, settings.name, settings.weights)
    backbone.freeze(settings.frozen_stages)
    return backbone


def _load(backbone: Backbone, name: str, weights: str) -> None:
    path = imagenet_weights(name) if weights == "imagenet" else Path(weights).expanduser()
    load_weights(backbone, path, name)
