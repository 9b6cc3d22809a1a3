"""How good a mask could be that is constant on every superpixel: the choices for merging compared.

    python benchmarks/superpixel_quality.py DATA [--split train] [--every 1] [--weights FILE]

DATA is a data set with masks. Every superpixel is given the class of most of its pixels; the mIoU of these masks is
what no method that decides by superpixel can exceed. Segments are merged by the features of the stages of MobileNetV2,
by their mean colour, or by their size alone. One in so many of the masked images is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from weakseg.ops.metrics import Confusion

from weakseg.data.images import LabelMap, read_image
from weakseg.data.opening import open_dataset
from weakseg.labels import VOID
from weakseg.methods.base import Image
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.superpixels import Ids, merge_segments, segment_features
from weakseg.pipeline.superpixels import SuperpixelSettings, dense_features, segmented
from weakseg.progress import Progress

COUNTS, STAGES = (64, 32), (3, 4, 5)
Features = Callable[[Image, Ids], npt.NDArray[np.float32]]


def best_mask(ids: Ids, truth: LabelMap) -> LabelMap:
    """The most frequent label of each superpixel, void left out."""
    counts = np.zeros((ids.max() + 1, VOID + 1), np.int64)
    np.add.at(counts, (ids, truth), 1)
    return counts[:, :VOID].argmax(1).astype(np.uint8)[ids]


def by_size(image: Image, ids: Ids) -> npt.NDArray[np.float32]:
    return np.ones((ids.max() + 1, 1), np.float32)


def by_colour(image: Image, ids: Ids) -> npt.NDArray[np.float32]:
    colours = image.transpose(2, 0, 1).astype(np.float32)
    return segment_features(colours, ids, (image.shape[0], image.shape[1]))


def by_stage(weights: str, stage: int) -> Features:
    settings = SuperpixelSettings(stage=stage)
    backbone = build_backbone(BackboneSettings(name="mobilenet_v2", output_stride=8, weights=weights)).eval()

    def features(image: Image, ids: Ids) -> npt.NDArray[np.float32]:
        dense = dense_features(image, backbone, settings, "cpu")
        return segment_features(dense.values, ids, dense.canvas)

    return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--weights", default="imagenet", help="of MobileNetV2")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data, None)
    masked = [sample for sample in dataset.split(arguments.split) if sample.mask][:: arguments.every]
    ways: dict[str, Features] = {"size alone": by_size, "colour": by_colour}
    ways |= {f"MobileNetV2, stage {stage}": by_stage(arguments.weights, stage) for stage in STAGES}
    rows = ["not merged", *(f"{way}, {count}" for way in ways for count in COUNTS)]
    confusions = {row: Confusion(len(dataset.classes) + 1) for row in rows}
    segments = 0
    with Progress("measuring", len(masked)) as progress:
        for sample in masked:
            assert sample.mask is not None
            image, truth = read_image(sample.image), sample.mask.read()
            ids = segmented(image, SuperpixelSettings(), merging=True)
            segments += int(ids.max()) + 1
            confusions["not merged"].update(truth, best_mask(ids, truth), sample.name)
            for way, features in ways.items():
                of_segments = features(image, ids)
                for count in COUNTS:
                    merged = merge_segments(ids, of_segments, count).ids
                    confusions[f"{way}, {count}"].update(truth, best_mask(merged, truth), sample.name)
            progress.advance()
    print(f"{len(masked)} images, {segments / len(masked):.0f} segments each before merging")
    for row, confusion in confusions.items():
        print(f"{row:24}  mIoU {100 * confusion.mean_iou_in_truth:.1f}")


if __name__ == "__main__":
    main()
