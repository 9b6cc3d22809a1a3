"""Dense CRF: how much faster than pydensecrf2, which computes the same thing on one thread?

    pip install weakseg[bench]
    python benchmarks/densecrf.py [FOLDER OF PHOTOGRAPHS]

Both run in turn in one process, on the same unaries, lattices included, ten iterations. A ratio is the peer's time
over ours for the same images; its median and its range over the repetitions are printed, and the largest difference
of the marginals. Lattices of the Gaussian kernel, which depend on the size of the image alone, are kept between
images as in a real run.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydensecrf import densecrf as peer

from weakseg.ops.densecrf import PARAMETERS, CRFParameters, dense_crf, unary_from_probabilities

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared/data/voc8_native"
LABELS = (2, 3, 21)


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    files = sorted(folder.rglob("*.jpg"))[:count]
    if not files:
        raise SystemExit(f"No photographs (*.jpg) in {folder}: name a folder that has some.")
    return [np.array(Image.open(file).convert("RGB")) for file in files]


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def unary(image: np.ndarray, labels: int, seed: int) -> np.ndarray:
    """A smooth random labelling, none of whose labels is absent: nothing can be left out."""
    height, width = image.shape[:2]
    coarse = np.random.default_rng(seed).normal(0, 2, (labels, 8, 8)).astype(np.float32)
    fine = np.stack(
        [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in coarse]
    )
    powers = np.exp(fine)
    return unary_from_probabilities(powers / powers.sum(0))


Job = tuple[np.ndarray, np.ndarray]  # an image and its unary


def run_ours(jobs: Sequence[Job], p: CRFParameters, threads: int) -> list[np.ndarray]:
    if threads == 1:
        return [dense_crf(image, costs, p) for image, costs in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: dense_crf(*job, p), jobs))


def run_ours_in_pairs(jobs: Sequence[Job], others: Sequence[np.ndarray], p: CRFParameters) -> None:
    for (image, costs), other in zip(jobs, others, strict=True):
        dense_crf(image, [costs, other], p)


def run_peer(jobs: Sequence[Job], p: CRFParameters) -> list[np.ndarray]:
    results = []
    for image, costs in jobs:
        labels, height, width = costs.shape
        crf = peer.DenseCRF2D(width, height, labels)
        crf.setUnaryEnergy(costs.reshape(labels, -1))
        crf.addPairwiseGaussian(sxy=p.gaussian_sxy, compat=p.gaussian_weight)
        crf.addPairwiseBilateral(sxy=p.bilateral_sxy, srgb=p.bilateral_srgb, rgbim=image, compat=p.bilateral_weight)
        results.append(np.array(crf.inference(p.iterations)).reshape(costs.shape))
    return results


def compare(
    title: str, ours: Callable[[], object], theirs: Callable[[], object], repetitions: int, images: int
) -> None:
    ours()  # compiles, and fills the cache of Gaussian lattices
    times = [(seconds(ours), seconds(theirs)) for _ in range(repetitions)]
    ratios = sorted(theirs / ours for ours, theirs in times)
    milliseconds = [1e3 * min(column) / images for column in zip(*times, strict=True)]
    print(
        f"{title:46} {milliseconds[0]:5.0f} {milliseconds[1]:6.0f}   {statistics.median(ratios):6.2f}"
        f"   {ratios[0]:.2f} … {ratios[-1]:.2f}   {milliseconds[1] / milliseconds[0]:8.2f}",
        flush=True,
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare_all(name: str, images: Sequence[np.ndarray], repetitions: int, threads: int) -> None:
    p = PARAMETERS[name]
    theirs: Callable[[], object]
    for labels in LABELS:
        jobs = [(image, unary(image, labels, seed)) for seed, image in enumerate(images)]
        theirs = partial(run_peer, jobs, p)
        results = zip(run_ours(jobs, p, 1), run_peer(jobs, p), strict=True)
        difference = max(np.abs(ours - expected).max() for ours, expected in results)
        title = f"{name}, L = {labels} (|ΔQ| ≤ {difference:.0e})"
        for count in sorted({1, threads}):
            ours = partial(run_ours, jobs, p, count)
            compare(f"{title}, {count} thread{'s' * (count > 1)}", ours, theirs, repetitions, len(images))
    jobs = [(image, unary(image, 2, seed)) for seed, image in enumerate(images)]
    others = [unary(image, 2, seed) for seed, image in enumerate(images, start=1000)]
    both = jobs + [(image, other) for image, other in zip(images, others, strict=True)]
    ours_in_pairs = partial(run_ours_in_pairs, jobs, others, p)
    title = f"{name}, two unaries, L = 2, 1 thread"
    compare(title, ours_in_pairs, partial(run_peer, both, p), repetitions, len(images))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the dense CRF against pydensecrf2.")
    parser.add_argument("photographs", nargs="?", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parameters", nargs="*", default=["affinitynet", "irnet", "deeplab"], choices=PARAMETERS)
    arguments = parser.parse_args()
    images = photographs(arguments.photographs, arguments.images)
    sizes = ", ".join(sorted({f"{image.shape[1]} × {image.shape[0]}" for image in images}))
    print(f"{len(images)} photographs, {sizes}; {processor()}, {len(os.sched_getaffinity(0))} cores")
    print(f"{'milliseconds for an image, peer over ours':46} {'ours':>5} {'peer':>6}   median   range       of fastest")
    for name in arguments.parameters:
        compare_all(name, images, arguments.repetitions, arguments.threads)


if __name__ == "__main__":
    main()
