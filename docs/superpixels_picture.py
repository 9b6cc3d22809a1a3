"""The picture of docs/superpixels.md: python docs/superpixels_picture.py TOY [WEIGHTS]

TOY is a folder of `weakseg data make-toy TOY --size 192`, WEIGHTS a file for MobileNetV2; by default it is downloaded.
Two images, one a row: image, segments, superpixels after merging, each in its mean colour, ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sheet import ground_truth, save_sheet

from weakseg.data.images import read_image
from weakseg.data.opening import open_dataset
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.pipeline.superpixels import SuperpixelSettings, superpixels
from weakseg.report.pictures import in_mean_colours

ROWS, SETTINGS = 2, SuperpixelSettings(count=16)


def main(toy: Path, weights: str = "imagenet") -> None:
    backbone = build_backbone(BackboneSettings(name="mobilenet_v2", output_stride=8, weights=weights)).eval()
    rows = []
    for sample in open_dataset(toy).split("train")[:ROWS]:
        image = read_image(sample.image)
        maps = (superpixels(image, network, SETTINGS) for network in (None, backbone))
        rows.append([image, *(in_mean_colours(image, ids) for ids in maps), ground_truth(image, sample)])
    save_sheet(rows, "superpixels.png", colours=128)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
