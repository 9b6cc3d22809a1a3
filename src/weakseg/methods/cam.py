"""CAM: a classifier of whole images that shows where it looks.

Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative Localization", CVPR 2016
(arXiv 1512.04150), in the form of IRNet (Ahn, Cho, Kwak, CVPR 2019, arXiv 1904.05044): its ResNet-50 at stride 16 with
only the last two stages and the classifier trained.

With features f(x) (D, h, w) of an image x and a 1×1 classifier w (C, D) without bias:

    s_c = w_c · mean over h, w of f          score of class c             (Zhou et al., section 2)
    L   = - mean over c of [ y_c log σ(s_c) + (1 - y_c) log(1 - σ(s_c)) ]
    M_c = relu(w_c · f)                      activation map of class c

The mean of w_c · f over the image is s_c, so a map shows which places speak for its class.

AffinityNet (Ahn and Kwak, CVPR 2018, arXiv 1803.10464) starts from the same classifier in another form, with ResNet-38
or VGG-16 at stride 8: half of the channels of f are dropped in training. For VGG-16 its maps are √relu(w_c · f).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.methods import base
from weakseg.models.originals import irnet_backbone_name, rename_copies
from weakseg.models.rates import caffe_param_groups
from weakseg.models.registry import BackboneSettings, build_backbone


class CAM(base.Localiser):
    """A backbone, global average pooling and a linear classifier. `settings.backbone.frozen_stages` cuts the gradient.

    `load_weights=False` skips the pretrained weights, for a caller who fills the network from a checkpoint.
    """

    class Settings(base.Settings):
        """The classifier learns `head_lr_factor` times as fast as the backbone. Defaults are IRNet's.

        The form "affinitynet" has dropout before the pooling, a classifier that starts from Xavier's distribution,
        biases that learn twice as fast and do not decay, and fixed scales and shifts of batch normalisation.
        `map_power` is ½ for AffinityNet's VGG-16.
        """

        backbone: BackboneSettings = Field(
            default=BackboneSettings(name="resnet50", output_stride=16, dilated=False, frozen_stages=3),
            description="the network whose features are used",
        )
        head_lr_factor: float = Field(default=10.0, gt=0, description="learning rate of new layers over lr")
        form: Literal["irnet", "affinitynet"] = Field(default="irnet", description="whose form of the classifier")
        map_power: float = Field(default=1.0, gt=0, description="what the activation maps are raised to")

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = build_backbone(settings.backbone, load_weights=load_weights)
        self.dropout = nn.Dropout2d(0.5) if settings.form == "affinitynet" else nn.Identity()
        self.classifier = nn.Conv2d(self.backbone.channels[-1], num_classes, 1, bias=False)
        if settings.form == "affinitynet":
            nn.init.xavier_uniform_(self.classifier.weight)

    def scores(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to a score per class (N, C); its sigmoid is the class's probability."""
        features = self.dropout(self.backbone(batch["image"])[-1])
        return self.classifier(features.mean((2, 3), keepdim=True)).flatten(1)

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        """The multi-label soft-margin loss, mean over classes and images."""
        scores = self.scores(batch).float()  # logarithms of bf16 would be too coarse
        return {"classification": F.multilabel_soft_margin_loss(scores, batch["tags"])}

    def activation_maps(self, batch: base.Batch) -> Tensor:
        """Normalised images (N, 3, H, W) to maps ≥ 0 of all classes (N, C, h, w), not yet normalised."""
        maps = F.relu(self.classifier(self.backbone(batch["image"])[-1]))
        return maps if self.settings.map_power == 1 else maps**self.settings.map_power

    def class_layer(self) -> nn.Conv2d:
        return self.classifier

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """What is not frozen of the backbone, and the classifier at `head_lr_factor` times the rate."""
        factor = self.settings.head_lr_factor
        if self.settings.form == "affinitynet":
            return caffe_param_groups(self, [self.classifier], lr, factor)
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr": lr},
            {"params": list(self.classifier.parameters()), "lr": lr * factor},
        ]


_IRNET_PARTS = {(1, 0): "conv1", (1, 1): "bn1", (1, 4): "layer1", (2, 0): "layer2", (3, 0): "layer3", (4, 0): "layer4"}


def read_irnet_cam(state: Mapping[str, Tensor]) -> base.Reading:
    """A `CAM` with the backbone "resnet50" from a checkpoint of IRNet's CAM network.

    Raises `WeaksegError` for names that such a file does not have, and for copies of one tensor that differ.
    """
    own = rename_copies(state, _irnet_name, ignored="").state
    settings = CAM.Settings()
    settings = settings.model_copy(update={"backbone": settings.backbone.model_copy(update={"weights": None})})
    return base.Reading(settings, _num_classes(own), own, inference={"scales": (1.0, 0.5, 1.5, 2.0), "threshold": 0.15})


def _num_classes(state: Mapping[str, Tensor]) -> int:
    if "classifier.weight" not in state:
        raise WeaksegError("it has no classifier")
    return len(state["classifier.weight"])


def _irnet_name(name: str) -> str | None:
    """Our name of a tensor of IRNet's CAM file; None for a name that it does not have."""
    if name in ("classifier.weight", "newly_added.0.weight"):
        return "classifier.weight"
    part = irnet_backbone_name(name, _IRNET_PARTS)
    return part and f"backbone.{part}"


def _read_affinitynet(state: Mapping[str, Tensor], backbone: str, map_power: float) -> base.Reading:
    own = {
        "classifier.weight" if name == "fc8.weight" else f"backbone.{name}": tensor for name, tensor in state.items()
    }
    settings = CAM.Settings(
        backbone=BackboneSettings(name=backbone, output_stride=8, weights=None, frozen_stages=1),
        form="affinitynet",
        map_power=map_power,
    )
    return base.Reading(settings, _num_classes(own), own, inference={"scales": (1.0, 0.5, 1.5, 2.0), "threshold": 0.2})


LOCALISER = CAM
CHECKPOINTS = [
    base.Checkpoint(
        "irnet-cam",
        "IRNet's CAM network (res50_cam.pth)",
        lambda names: "resnet50.conv1.weight" in names and all(_irnet_name(name) for name in names),
        read_irnet_cam,
    ),
    base.Checkpoint(
        "affinitynet-cam-resnet38",
        "AffinityNet's classifier with ResNet-38 (res38_cls.pth)",
        lambda names: {"b2.conv_branch1.weight", "fc8.weight"} <= set(names) and "f9.weight" not in names,
        partial(_read_affinitynet, backbone="resnet38", map_power=1.0),
    ),
    base.Checkpoint(
        "affinitynet-cam-vgg16",
        "AffinityNet's classifier with VGG-16 (vgg16_cls.pth)",
        lambda names: {"conv5_3.weight", "fc8.weight"} <= set(names) and "f9.weight" not in names,
        partial(_read_affinitynet, backbone="vgg16", map_power=0.5),
    ),
]
