"""The picture of docs/icd.md, from a run of the recipe toy-icd: python docs/icd_picture.py runs/toy-icd

Images of the training split with more than one class, one a row: image, superpixels, CAM and ICD score (the positive
parts, the strongest of the classes present), pseudo-mask, ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sheet import save_sheet

from weakseg.data.images import read_image, read_label_map
from weakseg.data.opening import open_dataset
from weakseg.files import read_json
from weakseg.pipeline.stages.maps import read_maps
from weakseg.pipeline.stages.masks import mask_path
from weakseg.pipeline.stages.superpixels import Superpixels
from weakseg.report.pictures import heat_map, in_mean_colours, painted

ROWS = 4


def main(run: Path) -> None:
    samples = open_dataset(Path(read_json(run / "data.json")["root"])).split("train")
    rows = []
    for sample in [sample for sample in samples if len(sample.labels.present()) > 1][:ROWS]:
        image = read_image(sample.image)
        maps = (read_maps(run / stage, sample).unsigned().upsampled().max(0) for stage in ("cam_maps", "maps"))
        assert sample.mask is not None
        rows.append(
            [
                image,
                in_mean_colours(image, Superpixels.array_of(run / "superpixels", sample)),
                *(heat_map(image, of_image) for of_image in maps),
                painted(image, read_label_map(mask_path(run / "masks", sample))),
                painted(image, sample.mask.read()),
            ]
        )
    save_sheet(rows, "icd.png", colours=128)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
