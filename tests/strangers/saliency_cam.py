"""CAM with extra supervision: activation should not fall where a saliency map is dark. Reads `saliency/NAME.png`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from weakseg.methods import base
from weakseg.methods.cam import CAM
from weakseg.ops.fields import ImageField


class SaliencyCAM(CAM):
    class Settings(CAM.Settings):
        weight: float = Field(default=0.1, ge=0, description="of the loss in the dark")

    fields: ClassVar[Mapping[str, ImageField]] = {**CAM.fields, "saliency": ImageField("maps", folder="saliency")}

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        maps = self.activation_maps(batch)
        dark = 1 - F.interpolate(batch["saliency"], maps.shape[-2:], mode="bilinear", align_corners=False)
        return {**super().losses(batch), "dark": self.settings.weight * (maps * dark).sum()}

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        return {"dark": (batch["saliency"] < 0.5).sum()}


LOCALISER = SaliencyCAM
