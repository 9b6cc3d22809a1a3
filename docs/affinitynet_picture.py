"""The picture of docs/affinitynet.md, from the run that `make demo` leaves:
python docs/affinitynet_picture.py runs/toy

Four images of the training split, one a row: image, SEAM's map, what is learned from it (void is white), affinity
of every cell to its surroundings, the map after the walk, pseudo-mask before CRF, ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sheet import ground_truth, save_sheet, training_samples, with_white_void

from weakseg.data.images import read_image, read_label_map
from weakseg.files import read_npz
from weakseg.labels import VOID
from weakseg.methods.affinitynet import affinity_labels
from weakseg.methods.store import load_model
from weakseg.ops.activation import normalise_image
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report.pictures import heat_map, painted

ROWS = 4


def main(run: Path) -> None:
    network = load_model(run / "affinity" / "model").network
    rows = []
    for sample in training_samples(run, least_classes=2)[:ROWS]:
        image = read_image(sample.image)
        before = read_maps(run / "seam_maps", sample)
        after = read_maps(run / "walk", sample)
        evidence = read_npz(run / "affinity" / "evidence" / f"{sample.name}.npz")
        sure = affinity_labels(evidence["low"], evidence["high"])
        known = np.array([0, *before.labels, *[VOID] * VOID], np.uint8)[sure]
        mask = read_label_map(run / "walked" / "masks" / f"{sample.name}.png")
        rows.append(
            [
                image,
                heat_map(image, before.upsampled().max(0)),
                with_white_void(image, known),
                heat_map(image, mean_affinity(network, image)),
                heat_map(image, after.upsampled()[1:].max(0)),
                painted(image, mask),
                ground_truth(image, sample),
            ]
        )
    save_sheet(rows, "affinitynet.png")


@torch.no_grad()
def mean_affinity(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """The mean affinity of each first pixel to its partners, at the size of the image: low at borders."""
    affinities, _ = network.affinities(torch.from_numpy(normalise_image(image)), all_pairs=True)  # type: ignore[operator]
    mean = affinities.mean(0)[None, None]
    return torch.nn.functional.interpolate(mean, image.shape[:2], mode="bilinear")[0, 0].numpy()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
