"""The picture of docs/icd.md: python docs/icd_picture.py RUN, a run of the recipe toy-icd.

Images of the training split with more than one class, one a row: image, superpixels in their mean colours, CAM, ICD
score (red above 0, blue below it), seeds before the CRF (void is white), pseudo-mask, ground truth. Maps and scores are
the largest of the classes present.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from sheet import ground_truth, save_sheet, training_samples, with_white_void

from weakseg.data.images import read_image, read_label_map
from weakseg.methods.icd import Boundary, labelled_seeds
from weakseg.ops.activation import ActivationMaps
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.masks import mask_path
from weakseg.pipeline.stages.superpixels import Superpixels
from weakseg.report.pictures import heat_map, in_mean_colours, painted

ROWS = 4
BOUNDARY: Boundary = "adaptive"
"""Of the seeds, as in the recipe."""


def main(run: Path) -> None:
    rows = []
    for sample in training_samples(run, least_classes=2)[:ROWS]:
        image = read_image(sample.image)
        cam, scores = (read_maps(run / stage, sample) for stage in ("cam_maps", "maps"))
        seeds = labelled_seeds({"image": image, "cam": cam.upsampled()}, scores, BOUNDARY)
        rows.append(
            [
                image,
                in_mean_colours(image, Superpixels.array_of(run / "superpixels", sample)),
                heat_map(image, cam.unsigned().upsampled().max(0)),
                signed_map(scores),
                with_white_void(image, seeds),
                painted(image, read_label_map(mask_path(run / "masks", sample))),
                ground_truth(image, sample),
            ]
        )
    save_sheet(rows, "icd.png", colours=128)


def signed_map(scores: ActivationMaps) -> np.ndarray:
    """Signed scores as colours (H, W, 3), the largest of all classes, each over its largest size: red above 0, blue
    below it, white at 0."""
    maps = scores.upsampled()
    largest = (maps / np.abs(maps).max((1, 2), keepdims=True)).max(0)
    return np.round(255 * colormaps["RdBu_r"](0.5 + largest / 2)[..., :3]).astype(np.uint8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
