"""The 60-point background-score curve in one pass, against 60 passes over the same arrays in memory.

    python benchmarks/threshold_curve.py [--images 8] [--repeats 5]

Images are 375 × 500 with 21 classes, 1 to 4 of them present, their maps smooth. Each pass labels the pixels at one
threshold and counts the confusion, two ways: "definition" compares whole maps in NumPy (`threshold_labels`),
"compiled" is the code of the curve itself, with a single threshold. All three must give equal counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weakseg.ops.metrics import THRESHOLDS, Confusion, ThresholdCurve, threshold_labels

CLASSES, SIZE = 21, (375, 500)
Image = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16], npt.NDArray[np.float32]]


def images(count: int) -> list[Image]:
    """Ground truth, labels and smooth maps in [0, 1]; the truth is what the maps say at 0.3, with some void."""
    from scipy.ndimage import zoom

    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        labels = np.sort(rng.choice(np.arange(1, CLASSES), 1 + i % 4, replace=False)).astype(np.int16)
        coarse = rng.random((len(labels), 15, 20), dtype=np.float32) ** 2
        maps = np.stack([zoom(one, 25, order=1) for one in coarse])
        truth = threshold_labels(labels, maps, 0.3, CLASSES)
        truth[rng.random(SIZE) < 0.05] = 255
        made.append((truth, labels, maps))
    return made


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
            confusion.update(truth, threshold_labels(labels, maps, threshold, CLASSES), "")
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


def seconds(work: Callable[[list[Image]], list[Confusion]], data: list[Image]) -> float:
    start = time.perf_counter()
    work(data)
    return time.perf_counter() - start


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    data = images(arguments.images)
    baselines = {"60 passes, definition": passes_by_definition, "60 passes, compiled": compiled_passes}
    expected = one_pass(data)
    for name, baseline in baselines.items():
        equal = all((a.matrix == b.matrix).all() for a, b in zip(expected, baseline(data), strict=True))
        assert equal, f"{name}: other counts than in one pass"

    print(f"{processor()}, {os.cpu_count()} cores, 1 used; numpy {np.__version__}, Python {platform.python_version()}")
    print(
        f"{arguments.images} images of {SIZE[0]} × {SIZE[1]}, {arguments.repeats} repeats, medians (least … largest)\n"
    )
    print(f"{'':24}{'ms per image':>28}{'times one pass':>28}")
    runs = [
        {"one pass": seconds(one_pass, data), **{name: seconds(work, data) for name, work in baselines.items()}}
        for _ in range(arguments.repeats)
    ]
    for name in runs[0]:
        milliseconds = [1e3 * run[name] / len(data) for run in runs]
        print(f"{name:24}{spread(milliseconds):>28}{spread([run[name] / run['one pass'] for run in runs]):>28}")


def spread(values: list[float]) -> str:
    return f"{np.median(values):.1f} ({min(values):.1f} … {max(values):.1f})"


if __name__ == "__main__":
    main()
