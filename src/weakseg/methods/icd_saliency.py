"""ICD's seeds with a saliency map in place of the CRF.

Fan, Zhang, Song, Tan, "Learning Integral Objects with Intra-Class Discriminator for Weakly-Supervised Semantic
Segmentation", CVPR 2020: the background is what a saliency map leaves dark, see `icd.seeds_of`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from weakseg.methods import base
from weakseg.methods.icd import BOUNDARY, Boundary, labelled_seeds
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.fields import ImageField


class ICDSaliencySeeds(base.MaskRule):
    """Seeds from ICD scores, the stage's `maps`, CAM's, the field `cam`, and `saliency/NAME.png` beside the images."""

    class Settings(base.Settings):
        dark: float = Field(default=0.01, ge=0, le=1, description="saliency of the background, less than this")
        boundary: Boundary = BOUNDARY

    fields: ClassVar[Mapping[str, ImageField]] = {
        "cam": ImageField("maps"),
        "saliency": ImageField("maps", folder="saliency"),
    }

    def mask(
        self, item: base.Item, maps: ActivationMaps, tags: Collection[int], num_classes: int
    ) -> npt.NDArray[np.uint8]:
        """Of an image without a class, everything is background."""
        return labelled_seeds(item, maps, self.settings.boundary, item["saliency"][0] >= self.settings.dark)


RULE = ICDSaliencySeeds
