"""Dense CRF on a CUDA device, images in batches: how much faster than pydensecrf2 on one core?

    pip install weakseg[bench]
    python benchmarks/densecrf_cuda.py [FOLDER OF PHOTOGRAPHS] [--batch 64]

Both run in turn in one process, on the same unaries, from arrays in memory to arrays in memory, lattices included. The
peer does the first few images of the batch; a ratio compares its time for an image with ours.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from densecrf import LABELS, PHOTOGRAPHS, photographs, processor, run_peer, seconds, unary
from weakseg.ops.densecrf import PARAMETERS, dense_crf


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the dense CRF on a CUDA device against pydensecrf2.")
    parser.add_argument("photographs", nargs="?", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--batch", type=int, default=64, help="images at once")
    parser.add_argument("--peer-images", type=int, default=4, help="images of the batch that the peer does")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--parameters", nargs="*", default=["affinitynet", "irnet", "deeplab"], choices=PARAMETERS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing was measured.")
    found = photographs(arguments.photographs, arguments.batch)
    images = [found[i % len(found)] for i in range(arguments.batch)]
    print(f"{len(images)} photographs at once ({len(found)} different), {torch.cuda.get_device_name()}; {processor()}")
    print("milliseconds for an image; ratio: median (least … largest)")
    for name in arguments.parameters:
        for labels in LABELS:
            compare(name, labels, images, arguments.peer_images, arguments.repetitions)


def compare(name: str, labels: int, images: Sequence[np.ndarray], peer_images: int, repetitions: int) -> None:
    unaries = [unary(image, labels, seed) for seed, image in enumerate(images)]
    theirs = partial(run_peer, list(zip(images, unaries, strict=True))[:peer_images], PARAMETERS[name])
    ours = partial(dense_crf, images, unaries, name, "cuda")
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours()[:peer_images], theirs(), strict=True))
    assert difference < 1e-2, f"{name}, L = {labels}: the two sides differ by {difference:g}"
    times = [(seconds(ours) / len(images), seconds(theirs) / peer_images) for _ in range(repetitions)]
    ratios = sorted(b / a for a, b in times)
    ours_ms, theirs_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{name}, L = {labels} (|ΔQ| ≤ {difference:.0e}): {ours_ms:.1f}, peer {theirs_ms:.0f}: "
        f"{statistics.median(ratios):.0f} ({ratios[0]:.0f} … {ratios[-1]:.0f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
