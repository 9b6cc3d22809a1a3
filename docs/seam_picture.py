"""The picture of docs/seam.md, from the run that `make demo` leaves: python docs/seam_picture.py runs/toy

Images of the training split with more than one class, one a row: image, CAM's map, SEAM's plain map C, its refined map
R (both at scale 1, the strongest of the classes present), the map after the walk, pseudo-mask, ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sheet import ground_truth, save_sheet, training_samples
from torch.nn import functional as F

from weakseg.data.images import read_image, read_label_map
from weakseg.methods.seam import SEAM, min_max_normalised
from weakseg.methods.store import load_model
from weakseg.ops.activation import normalise_image
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report.pictures import heat_map, painted

ROWS = 4


def main(run: Path) -> None:
    network = load_model(run / "seam" / "model").network.eval()
    rows = []
    for sample in training_samples(run, least_classes=2)[:ROWS]:
        image = read_image(sample.image)
        cam, walked = (read_maps(run / stage, sample).upsampled() for stage in ("maps", "walk"))
        plain, refined = strongest(network, image, sorted(sample.labels.present()))
        mask = read_label_map(run / "masks" / "masks" / f"{sample.name}.png")
        rows.append(
            [
                image,
                *(heat_map(image, of_image) for of_image in (cam.max(0), plain, refined, walked[1:].max(0))),
                painted(image, mask),
                ground_truth(image, sample),
            ]
        )
    save_sheet(rows, "seam.png", colours=128)


@torch.no_grad()
def strongest(network: SEAM, image: np.ndarray, present: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """norm(C) and norm(R) of an image (H, W, 3), each the largest over the classes present, (H, W)."""
    views = torch.from_numpy(normalise_image(image))[None]
    plain, refined = network.raw_maps(views)[0][:, 1:], network.activation_maps({"image": views})
    maps = torch.cat([min_max_normalised(of_all[:, [label - 1 for label in present]]) for of_all in (plain, refined)])
    large = F.interpolate(maps, image.shape[:2], mode="bilinear").amax(1).clamp(0, 1).numpy()
    return large[0], large[1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
