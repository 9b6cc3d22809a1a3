"""The picture at the top of the README, from the run that `make demo` leaves: python docs/toy_picture.py runs/toy

Images of the training split, one a row: image, CAM's map, SEAM's map, the map after the walk, pseudo-mask, segmenter,
ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sheet import ground_truth, save_sheet, training_samples

from weakseg.data.images import read_image, read_label_map
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report.pictures import heat_map, painted

ROWS = 5


def main(run: Path) -> None:
    rows = []
    for sample in training_samples(run)[:ROWS]:
        image = read_image(sample.image)
        maps = [read_maps(run / stage, sample) for stage in ("maps", "seam_maps", "walk")]
        folders = (run / "masks" / "masks", run / "scores" / "predictions" / "segment")
        masks = [read_label_map(folder / f"{sample.name}.png") for folder in folders]
        rows.append(
            [
                image,
                *(heat_map(image, of_image.upsampled()[of_image.has_background :].max(0)) for of_image in maps),
                *(painted(image, mask) for mask in masks),
                ground_truth(image, sample),
            ]
        )
    save_sheet(rows, "toy-run.png", colours=128)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
