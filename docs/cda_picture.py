"""The pictures of docs/cda.md: python docs/cda_picture.py RUN, a run of the recipe toy-cda.

cda-pool.png: crops of the pool, a class in each row; then images, and the same with an object pasted on. cda-maps.png:
images that show the context of their class, each with its activation map of the first and of the second round, the
context and the ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sheet import grid, ground_truth, save_sheet

from weakseg.data.images import read_image
from weakseg.data.loading import Draw, ReadTags, TrainingImages, generator
from weakseg.data.transforms import Augmentation
from weakseg.methods.cda import PASTING_STREAM, PastedPairs, Pool, Settings
from weakseg.ops.fields import TAGS
from weakseg.pipeline.stages.maps import read_maps
from weakseg.report.folder import RunFolder
from weakseg.report.pictures import SHEET_COLUMNS, contact_sheet, heat_map, painted, spread

ROWS, PAIRS = 6, 6


def main(run: Path) -> None:
    classes, parts = RunFolder.read(run).open_data()
    samples = list(parts["train"].values())
    pool = Pool.load(run / "round-1" / "pool", classes)
    crops = [pool.read(k, name) for k in pool.labels for name in spread(pool.names[k - 1], SHEET_COLUMNS)]
    sheet = contact_sheet([(crop.image, crop.inside) for crop in crops])
    images = TrainingImages(samples, [ReadTags(len(classes))], {"tags": TAGS}, Augmentation(crop=96), 0)
    pairs, shown = PastedPairs(images, pool, Settings()), []
    for place in range(PAIRS):
        item = images.read(Draw(0, place, place))
        pasted = pairs.pasted(item, generator(0, Draw(0, place, place), PASTING_STREAM))
        shown.append([item["image"], pasted["image"]])
    half = PAIRS // 2
    beside = grid([left + right for left, right in zip(shown[:half], shown[half:], strict=True)])
    save_sheet([[sheet, beside]], "cda-pool.png", colours=96)

    rows = []
    for sample in samples:
        present = sample.labels.present()
        assert sample.context is not None
        contexts = sample.context.read()
        if len(rows) < ROWS and len(present) == 1 and (contexts == min(present)).any():
            image = read_image(sample.image)
            maps = (read_maps(run / stage, sample) for stage in ("maps", "round-1/maps"))
            heats = [heat_map(image, of_round.upsampled()[0]) for of_round in maps]
            rows.append([image, *heats, painted(image, contexts), ground_truth(image, sample)])
    save_sheet(rows, "cda-maps.png", colours=96)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
