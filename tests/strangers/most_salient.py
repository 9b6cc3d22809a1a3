"""A rule for pseudo-masks: the best class where the saliency map is bright, void where neither is sure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from weakseg.labels import VOID
from weakseg.methods import base
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.fields import ImageField


class MostSalient(base.MaskRule):
    class Settings(base.Settings):
        bright: float = Field(default=0.5, ge=0, le=1, description="saliency of an object, at least")

    fields: ClassVar[Mapping[str, ImageField]] = {"saliency": ImageField("maps", folder="saliency")}

    def mask(
        self, item: base.Item, maps: ActivationMaps, tags: Collection[int], num_classes: int
    ) -> npt.NDArray[np.uint8]:
        saliency, scores = item["saliency"][0], maps.upsampled()
        best = maps.labels.astype(np.uint8)[scores.argmax(0)]
        sure = np.where(saliency >= self.settings.bright, best, np.uint8(0))
        return np.where((saliency > 0) & (saliency < self.settings.bright), np.uint8(VOID), sure)


RULE = MostSalient
