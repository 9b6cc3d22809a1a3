"""The 60-point background-score curve in one pass, against 60 passes over the same arrays in memory.

    python benchmarks/threshold_curve.py [--images 8] [--repeats 5]

Images are 375 × 500 with 21 classes, 1 to 4 of them present, their maps smooth. Each pass labels the pixels at one
threshold and counts the confusion, two ways: "definition" compares whole maps in NumPy (`threshold_labels`),
"compiled" is the code of the curve itself, with a single threshold. All three must give equal counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

import measure
from weakseg.ops.confusion import Confusion
from weakseg.ops.threshold_curve import THRESHOLDS, ThresholdCurve

CLASSES, SIZE = 21, (375, 500)
Image = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16], npt.NDArray[np.float32]]
Passes = Callable[[list[Image]], list[Confusion]]


def images(count: int) -> list[Image]:
    """Ground truth, labels and smooth maps in [0, 1]; the truth is what the maps say at 0.3, with some void."""
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        labels = np.sort(rng.choice(np.arange(1, CLASSES), 1 + i % 4, replace=False)).astype(np.int16)
        coarse = rng.random((len(labels), 15, 20), dtype=np.float32) ** 2
        maps = np.stack([zoom(one, 25, order=1) for one in coarse])
        truth = threshold_labels(labels, maps, 0.3)
        truth[rng.random(SIZE) < 0.05] = 255
        made.append((truth, labels, maps))
    return made


def threshold_labels(labels: np.ndarray, maps: np.ndarray, threshold: float) -> npt.NDArray[np.uint8]:
    """The label map (H, W) of maps (K, H, W) of ascending labels (K,), by the definition: the largest score wins, the
    background's being the threshold, which is not negative, so that absent classes, with 0, never win."""
    scores = np.concatenate([np.full((1, *maps.shape[1:]), threshold, np.float32), maps])
    return np.concatenate([[0], labels]).astype(np.uint8)[scores.argmax(axis=0)]


def one_pass(data: list[Image]) -> list[Confusion]:
    curve = ThresholdCurve(CLASSES)
    for truth, labels, maps in data:
        curve.update(truth, labels, maps, "")
    return [curve.at(i) for i in range(len(curve))]


def passes_by_definition(data: list[Image]) -> list[Confusion]:
    confusions = []
    for threshold in THRESHOLDS:
        confusion = Confusion(CLASSES)
        for truth, labels, maps in data:
            confusion.update(truth, threshold_labels(labels, maps, threshold), "")
        confusions.append(confusion)
    return confusions


def compiled_passes(data: list[Image]) -> list[Confusion]:
    confusions = []
    for threshold in THRESHOLDS:
        curve = ThresholdCurve(CLASSES, [threshold])
        for truth, labels, maps in data:
            curve.update(truth, labels, maps, "")
        confusions.append(curve.at(0))
    return confusions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=measure.usually(8, 2))
    parser.add_argument("--repeats", type=int, default=measure.usually(5, 1))
    arguments = parser.parse_args()
    data = images(arguments.images)
    conditions = f"{arguments.images} images of {SIZE[0]} × {SIZE[1]}, {CLASSES} classes, 1 thread; times of one image"
    table = measure.Table("The 60-point threshold curve: one pass against 60 passes in memory", conditions)
    baselines: dict[str, tuple[Passes, float | None]] = {
        "60-point curve, passes by the definition": (passes_by_definition, 30),
        "60-point curve, passes of the compiled code": (compiled_passes, None),
    }
    for line, (baseline, target) in baselines.items():
        equal = all((a.matrix == b.matrix).all() for a, b in zip(one_pass(data), baseline(data), strict=True))
        assert equal, f"{line}: other counts than in one pass"
        ours, peer = measure.alternate(partial(one_pass, data), partial(baseline, data), arguments.repeats)
        times = (measure.milliseconds(taken, len(data)) for taken in (ours, peer))
        table.rows.append(measure.Row(line, *times, measure.ratios(ours, peer), target, "all counts equal"))
    measure.publish(table)


if __name__ == "__main__":
    main()
