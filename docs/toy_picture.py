"""The picture at the top of the README, from the run that `make demo` leaves: python docs/toy_picture.py runs/toy

Six images of the training split, one a row: image, activation maps, pseudo-mask, prediction, ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from weakseg.data.images import read_image, read_label_map
from weakseg.data.opening import open_dataset
from weakseg.files import read_json
from weakseg.ops.activation import ActivationMaps
from weakseg.report.pictures import heat_map, painted

ROWS, ENLARGED, GAP = 6, 2, 8


def main(run: Path) -> None:
    samples = open_dataset(Path(read_json(run / "data.json")["root"])).split("train")
    rows = []
    for sample in samples[:ROWS]:
        image = read_image(sample.image)
        maps = ActivationMaps.load(run / "maps" / "maps" / f"{sample.name}.npz").upsampled()
        mask = read_label_map(run / "masks" / "masks" / f"{sample.name}.png")
        prediction = read_label_map(run / "scores" / "predictions" / "segment" / f"{sample.name}.png")
        assert sample.mask is not None
        truth = sample.mask.read()
        rows.append([image, heat_map(image, maps.max(0)), *(painted(image, m) for m in (mask, prediction, truth))])
    height, width = rows[0][0].shape[:2]
    # Two images share a row of the sheet.
    sheet = np.full((ROWS // 2 * (height + GAP) - GAP, 2 * 5 * (width + GAP) + 2 * GAP, 3), 255, np.uint8)
    for number, pictures in enumerate(rows):
        top, left = number // 2 * (height + GAP), number % 2 * (5 * (width + GAP) + 3 * GAP)
        for column, picture in enumerate(pictures):
            sheet[top : top + height, left + column * (width + GAP) :][:, :width] = picture
    large = Image.fromarray(sheet)
    large = large.resize((large.width * ENLARGED, large.height * ENLARGED), Image.Resampling.LANCZOS)
    large.quantize(256).save(Path(__file__).with_name("toy-run.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
