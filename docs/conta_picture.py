"""The picture of docs/conta.md: python docs/conta_picture.py RUN, a run of the recipe toy-conta.

conta.png: the confounders of all classes; then images, each with the mask that the segmenter of the first round made of
it and its context map M of the next round.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sheet import save_sheet
from torch.nn import functional as F

from weakseg.data.images import read_image
from weakseg.methods.conta import Confounders, Contextual
from weakseg.methods.store import load_model
from weakseg.pipeline.stages.confounders import FILE_NAME, ReadContext, read_mask
from weakseg.report.folder import RunFolder
from weakseg.report.pictures import heat, heat_map, painted, spread

IMAGES = 4


def main(run: Path) -> None:
    classes, parts = RunFolder.read(run).open_data()
    found = Confounders.load(run / "round-1" / "confounders" / FILE_NAME, classes)
    network = load_model(run / "round-1" / "cam" / "model").network
    assert isinstance(network, Contextual)
    masks = run / "round-1" / "predicted"
    read = ReadContext(masks, found.grid)
    averages = [heat(c / found.confounder.max())[::3, ::3] for c in found.confounder]
    shown = []
    for sample in spread(list(parts["train"].values()), IMAGES):
        image = read_image(sample.image)
        with torch.inference_mode():
            maps = network.conta(torch.from_numpy(read(sample)["context"])[None])
        size = (image.shape[0], image.shape[1])
        enlarged = F.interpolate(maps[None] / maps.max(), size, mode="bilinear", align_corners=False)[0, 0]
        shown.append([image, painted(image, read_mask(masks, sample)), heat_map(image, np.asarray(enlarged))])
    beside = [left + right for left, right in zip(shown[::2], shown[1::2], strict=True)]
    save_sheet([averages, *beside], "conta.png", colours=96)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
