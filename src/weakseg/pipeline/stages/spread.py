"""Pseudo-masks that a trained network spreads over an image from partial labels or activation maps, by the similarity
of its pixels. Artifact: one palette PNG per image, as that of the stage `masks`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.loading import read_fields
from weakseg.labels import VOID
from weakseg.ops.fields import PARTIAL_LABELS, ImageField
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.learning import stage_readers
from weakseg.pipeline.spreading import BySimilarity
from weakseg.pipeline.stage import Reads
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.masks import mask_path

FIELDS = {"labels": PARTIAL_LABELS, "regions": ImageField("ids")}


class Spread(BySimilarity):
    """Classes of which the labels of an image show nothing get no score. Void pixels of the labels stay void."""

    version: ClassVar[int] = 2
    kind: Literal["spread"] = "spread"
    options_name: ClassVar[str] = "SpreadOptions"
    maps: Annotated[str | None, Reads("maps")] = Field(
        default=None, description="the stage whose activation maps are spread, where the options say so"
    )
    regions: Annotated[str | None, Reads()] = Field(
        default=None, description="the stage that makes low-level regions, where the options need them"
    )

    def run(self, context: Context, folder: Path) -> None:
        network, options, device = self.network(context), self.typed_options(), context.fabric.device
        inputs = {"labels": self.labels, **({} if self.regions is None else {"regions": self.regions})}
        readers = stage_readers(context, inputs)
        fields = {name: FIELDS[name] for name in inputs}

        def make(sample: Sample) -> None:
            item = read_fields(sample, readers, fields)
            maps = None if self.maps is None else read_maps(context.folder(self.maps), sample)
            found = self.mask_of(sample, network.spread(item, maps, options, device), device)
            void = readers[0](sample)["labels"] == VOID
            context.write_labels(mask_path(folder, sample), np.where(void, np.uint8(VOID), found))

        complete("spreading", context.weakly_labelled(), partial(mask_path, folder), make, through=map)


STAGE = Spread
