"""Dense CRF on a CUDA device, images in batches: how much faster than pydensecrf2 on one core?

    pip install weakseg[bench]
    python benchmarks/densecrf_cuda.py [FOLDER OF PHOTOGRAPHS] [--batch 64]

Both run in turn in one process, on the same unaries, from arrays in memory to arrays in memory, lattices included. The
peer does the first few images of the batch; a ratio compares its time for an image with ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import measure
from densecrf import LABELS, largest_difference, run_peer, unary
from weakseg.ops.crf_parameters import PARAMETERS
from weakseg.ops.densecrf import dense_crf

TITLE, TARGET = "Dense CRF on CUDA against pydensecrf2 on one core", 100


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the dense CRF on a CUDA device against pydensecrf2.")
    parser.add_argument("photographs", nargs="?", type=Path, default=measure.PHOTOGRAPHS)
    parser.add_argument("--batch", type=int, default=measure.usually(64, 2), help="images at once")
    parser.add_argument("--peer-images", type=int, default=4, help="images of the batch that the peer does")
    parser.add_argument("--repeats", type=int, default=measure.usually(5, 1))
    parser.add_argument("--parameters", nargs="*", default=["affinitynet", "irnet", "deeplab"], choices=PARAMETERS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        measure.not_measured(TITLE, "no CUDA device")
    found = measure.photographs(TITLE, arguments.photographs, arguments.batch)
    images = [found[i % len(found)] for i in range(arguments.batch)]
    conditions = f"{len(images)} photographs at once ({len(found)} different), {torch.cuda.get_device_name()}"
    table = measure.Table(TITLE, f"{conditions}; times of one image")
    for name in arguments.parameters:
        for labels in LABELS:
            table.rows.append(compare(name, labels, images, arguments.peer_images, arguments.repeats))
    measure.publish(table)


def compare(name: str, labels: int, images: Sequence[np.ndarray], peer_images: int, repeats: int) -> measure.Row:
    unaries = [unary(image, labels, seed) for seed, image in enumerate(images)]
    jobs = list(zip(images, unaries, strict=True))[:peer_images]
    ours, theirs = partial(dense_crf, images, unaries, name, "cuda"), partial(run_peer, jobs, PARAMETERS[name])
    difference = largest_difference(ours()[:peer_images], theirs())
    our_times, their_times = measure.alternate(ours, theirs, repeats)
    taken = [[s / len(images) for s in our_times], [s / len(jobs) for s in their_times]]
    return measure.Row(
        f"dense CRF on CUDA, {name}, L = {labels}",
        *map(measure.milliseconds, taken),
        measure.ratios(*taken),
        TARGET,
        f"largest difference of marginals {difference:.0e}",
    )


if __name__ == "__main__":
    main()
