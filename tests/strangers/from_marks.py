"""A segmenter that learns from points and scribbles: cross entropy where somebody has marked a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from weakseg.methods import base
from weakseg.methods.deeplab import DeepLab
from weakseg.ops.fields import LABELS, ImageField


class FromMarks(DeepLab):
    fields: ClassVar[Mapping[str, ImageField]] = {"marks": LABELS}

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        return super().losses({"image": batch["image"], "labels": batch["marks"]})

    def counts(self, batch: base.Batch) -> dict[str, Tensor]:
        return super().counts({"labels": batch["marks"]})


SEGMENTER = FromMarks
