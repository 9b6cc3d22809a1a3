"""Pseudo-masks that a trained network spreads over an image from partial labels or activation maps, by the similarity
of its pixels. Artifact: one palette PNG per image, as that of the stage `masks`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.images import write_label_map
from weakseg.data.loading import Reader, read_fields
from weakseg.labels import VOID
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.inference import decide
from weakseg.pipeline.learning import ReadArrays
from weakseg.pipeline.spreading import BySimilarity
from weakseg.pipeline.stage import Reads
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.masks import mask_path


class Spread(BySimilarity):
    """Classes of which the labels of an image show nothing get no score. Void pixels of the labels stay void."""

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
        readers: list[Reader] = [
            ReadArrays(name, type(context.stages[stage]), context.folder(stage))
            for name, stage in (("labels", self.labels), ("regions", self.regions))
            if stage is not None
        ]

        def make(sample: Sample) -> None:
            item = read_fields(sample, readers, {})
            maps = None if self.maps is None else read_maps(context.folder(self.maps), sample)
            scores = network.spread(item, maps, options, device).cpu().numpy()
            labels: npt.NDArray[np.uint8] = np.arange(len(scores), dtype=np.uint8)
            found = decide(item["image"], scores, labels, self.crf, device).labels
            write_label_map(mask_path(folder, sample), np.where(item["labels"] == VOID, np.uint8(VOID), found))

        complete("spreading", context.weakly_labelled(), partial(mask_path, folder), make, through=map)


STAGE = Spread
