"""Pseudo-masks by retrieval: each part of an image takes the labels of the most similar parts of all images. Artifact:
one palette PNG per image, as that of the stage `masks`; and what is remembered of each, in `memory/`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from weakseg.data.dataset import Sample
from weakseg.data.loading import read_fields
from weakseg.errors import WeaksegError
from weakseg.files import read_npz, write_npz
from weakseg.ops.fields import PARTIAL_LABELS
from weakseg.pipeline.context import Context, complete
from weakseg.pipeline.learning import ReadArrays
from weakseg.pipeline.spreading import BySimilarity
from weakseg.pipeline.stage import Reads
from weakseg.pipeline.stages.masks import mask_path


class Retrieve(BySimilarity):
    """The images that are remembered are those of the training; their labels must be those of a class somewhere."""

    kind: Literal["retrieve"] = "retrieve"
    options_name: ClassVar[str] = "RetrievalOptions"
    present: Annotated[str | None, Reads("partial", "masks")] = Field(
        default=None, description="the stage whose label maps say which classes an image shows; null: that of `labels`"
    )

    def run(self, context: Context, folder: Path) -> None:
        network, options, device = self.network(context), self.typed_options(), context.fabric.device
        reader, shown = (
            ReadArrays("labels", type(context.stages[stage]), context.folder(stage))
            for stage in (self.labels, self.present or self.labels)
        )

        def remember(sample: Sample) -> None:
            found = network.remember(read_fields(sample, [reader], {"labels": PARTIAL_LABELS}), options, device)
            write_npz(memory_path(folder, sample), found)

        complete("remembering", context.train, partial(memory_path, folder), remember, through=map)
        parts = [read_npz(memory_path(folder, sample)) for sample in context.train]
        memory = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
        if not len(memory["labels"]):
            raise WeaksegError(
                f'The label maps of "{self.labels}" name no class anywhere, so nothing can be retrieved.'
            )
        memory = {name: values.to(device) for name, values in memory.items()}

        def make(sample: Sample) -> None:
            labels = shown(sample)["labels"]
            present = {0, *np.unique(labels[labels <= len(context.dataset.classes)]).tolist()}
            scores = network.retrieve(sample.read_image(), present, memory, options, device)
            context.write_labels(mask_path(folder, sample), self.mask_of(sample, scores, device))

        complete("retrieving", context.weakly_labelled(), partial(mask_path, folder), make, through=map)


def memory_path(folder: Path, sample: Sample) -> Path:
    """Where the remembered part of an image lies in the folder of its stage."""
    return folder / "memory" / f"{sample.name}.npz"


STAGE = Retrieve
