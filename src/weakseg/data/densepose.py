"""DensePose's body parts on COCO images, as SPML learns them from points.

Güler, Neverova, Kokkinos, "DensePose: Dense Human Pose Estimation In The Wild", CVPR 2018 (arXiv 1802.00434); the
labels are those of Ke, Hwang, Yu, ICLR 2021 (arXiv 2105.00957).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report, reading
from weakseg.data.images import IMAGE_SUFFIXES, IndexMask, find_files, image_size, read_label_map
from weakseg.errors import WeaksegError
from weakseg.labels import Classes, Point, WeakLabels

# fmt: off
PARTS = (
    "torso", "right hand", "left hand", "left foot", "right foot", "right thigh", "left thigh", "right leg", "left leg",
    "left arm", "right arm", "left forearm", "right forearm", "head",
)
# fmt: on
TRUTH, POINTS, INSTANCES = "segcls", "points", "inst"


def read_densepose(root: Path | str, report: Report | None = None) -> Dataset:
    """Read `images/SPLIT/NAME.jpg` and, of the same SPLIT/NAME, PNGs of body parts, 0 background, 1 … 14, 255 void.

    - `segcls/`: the ground truth.
    - `points/`: spots of a part, all else a value from 15 on. The middle of each spot is a point; a point says which
      parts the image shows, but nobody has said that it shows no others.
    - `inst/`: numbers of the people, for scores that count each.

    Splits are the folders of `images`, such as `train2014` and `minival2014`. Problems go to `report`; without one they
    are raised together as a `WeaksegError`.
    """
    root = Path(root)
    with reading(root, report) as report:
        classes = Classes(PARTS)
        images = find_files(root / "images", IMAGE_SUFFIXES, report)
        truths, points, instances = (
            find_files(root / folder, (".png",), report) for folder in (TRUTH, POINTS, INSTANCES)
        )
        values = classes.own_values()
        splits: dict[str, list[Sample]] = {}
        for name, path in images.items():
            split = name.partition("/")[0]
            if split == name:
                report.problem("the image lies in no folder of a split, such as images/train2014.", str(path))
                continue
            mask = IndexMask(truths[name], values) if name in truths else None
            labels = WeakLabels(points=_points(points[name], path, report) if name in points else ())
            splits.setdefault(split, []).append(Sample(name, path, labels, mask, instances.get(name)))
        if not images:
            raise WeaksegError(f"{root} holds no pictures in images/SPLIT, such as images/train2014.")
        for folder, found in ((TRUTH, truths), (POINTS, points), (INSTANCES, instances)):
            for name in sorted(found.keys() - images.keys()):
                report.problem("there is no image of this name.", f"{folder}/{name}.png")
        return Dataset(root, "densepose", classes, splits)


def _points(path: Path, image: Path, report: Report) -> tuple[Point, ...]:
    """The middle pixels of the spots in a map of points; none, and a problem, where the file is not one."""
    try:
        labels, size = read_label_map(path), image_size(image)
    except WeaksegError as error:
        report.problem(str(error), str(path))
        return ()
    if labels.shape != size:
        report.problem(
            f"the map has {labels.shape[1]}×{labels.shape[0]} pixels, its image {size[1]}×{size[0]}.", str(path)
        )
        return ()
    found = []
    for label in np.unique(labels[labels <= len(PARTS)]).tolist():
        spots, count = ndimage.label(labels == label, np.ones((3, 3)))
        for number in range(1, count + 1):
            rows, columns = np.nonzero(spots == number)
            middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            found.append(Point(label, int(columns[middle]), int(rows[middle])))
    return tuple(found)
