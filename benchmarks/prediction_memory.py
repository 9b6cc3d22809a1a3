"""How much memory does a prediction take, of large images and of many classes?

    python benchmarks/prediction_memory.py

Each in a new process, whose peak memory (Python and torch among it) the system tells. The network is MobileNetV2 with
DeepLab's head at random, on an image of large blocks. What it took before images were looked at through windows was
measured on another machine, with the networks of that time.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import torch

import measure

TITLE = "Memory of a prediction"
BLOCK = 250


class Case(NamedTuple):
    """`before` are GB without windows; `allowed` is what they are to stay below."""

    megapixels: float
    classes: int
    crf: str | None
    before: float | None
    allowed: float | None = None

    @property
    def line(self) -> str:
        crf = f", CRF {self.crf}" if self.crf else ""
        return f"{self.megapixels:g} megapixels, {self.classes} classes{crf}"


CASES = (
    Case(24, 6, None, 2.6),
    Case(6, 254, None, 18.6),
    Case(3, 80, "deeplab", 9.6),
    Case(100, 20, None, None, allowed=4.0),
)


def predict(case: Case) -> None:
    from weakseg.labels import Classes
    from weakseg.methods.deeplab import DeepLab
    from weakseg.methods.store import Model
    from weakseg.models.registry import BackboneSettings
    from weakseg.pipeline.inference import Inference
    from weakseg.pipeline.inference import predict as predict_image

    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = BackboneSettings(name="mobilenet_v2", output_stride=16, weights=None)
    network = DeepLab(DeepLab.Settings(backbone=backbone, rates=(3, 6, 9, 12)), case.classes)
    for classifier in network.aspp.classifiers():
        classifier.weight.data.normal_(std=1.0)  # so that few classes come near the best
    model = Model("deeplab", Classes([f"class {k}" for k in range(case.classes)]), network.eval(), {})
    height = round((case.megapixels * 0.75e6) ** 0.5)
    width = round(case.megapixels * 1e6 / height)
    blocks = np.random.default_rng(0).integers(0, 256, (height // BLOCK + 1, width // BLOCK + 1, 3), np.uint8)
    image = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]
    predict_image(model, image, Inference(crf=case.crf), torch.device("cpu"), keep_scores=False)


def peak(number: int) -> float:
    """GB that a case takes in a new process."""
    command = [sys.executable, __file__, "--case", str(number)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(number: int, case: Case) -> measure.Row:
    taken = peak(number)
    limit = case.allowed if case.before is None else case.before
    peer = f"{case.allowed:g} GB allowed" if case.before is None else f"{case.before:g} GB before (not measured here)"
    target = None if case.allowed is None else 1
    return measure.Row(case.line, f"{taken:.2f} GB", peer, [] if limit is None else [limit / taken], target)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the peak memory of predictions.")
    parser.add_argument("--case", type=int, help="only carry out this case in this process, and print its peak in GB")
    arguments = parser.parse_args()
    if arguments.case is not None:
        predict(CASES[arguments.case])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)  # kB on Linux
        return
    table = measure.Table(TITLE, "MobileNetV2, scale 1, one thread, peak of a whole process")
    table.rows += [row(number, case) for number, case in measure.usually(list(enumerate(CASES)), [])]
    measure.publish(table)


if __name__ == "__main__":
    main()
