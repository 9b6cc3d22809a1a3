"""Dense CRF: how much faster than pydensecrf2, which computes the same thing on one thread?

    pip install weakseg[bench]
    python benchmarks/densecrf.py [FOLDER OF PHOTOGRAPHS]

Both run in turn in one process, on the same unaries, lattices included, ten iterations. Lattices of the Gaussian
kernel, which depend on the size of the image alone, are kept between images as in a real run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydensecrf import densecrf as peer

import measure
from weakseg.ops.densecrf import PARAMETERS, CRFParameters, dense_crf, unary_from_probabilities

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared/data/voc8_native"
LABELS = (2, 3, 21)
# (labels, threads) to how many times faster than the peer's one thread we claim to be.
TARGETS = {(2, 1): 3.5, (3, 1): 3.5, (2, 2): 6.0, (3, 2): 6.0, (21, 2): 4.0}
Work = Callable[[], object]


def photographs(folder: Path, count: int) -> list[np.ndarray]:
    files = sorted(folder.rglob("*.jpg"))[:count]
    if not files:
        raise SystemExit(f"No photographs (*.jpg) in {folder}: name a folder that has some.")
    return [np.array(Image.open(file).convert("RGB")) for file in files]


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
    title: str, ours: Work, theirs: Work, repetitions: int, images: int, target: float | None, agreement: str = ""
) -> measure.Row:
    ours()  # compiles, and fills the cache of Gaussian lattices
    taken = measure.alternate(ours, theirs, repetitions)
    times = (measure.milliseconds(side, images) for side in taken)
    return measure.Row(title, *times, measure.ratios(*taken), target, agreement)


def compare_all(name: str, images: Sequence[np.ndarray], repetitions: int, threads: int) -> list[measure.Row]:
    p = PARAMETERS[name]
    rows = []
    for labels in LABELS:
        jobs = [(image, unary(image, labels, seed)) for seed, image in enumerate(images)]
        theirs = partial(run_peer, jobs, p)
        results = zip(run_ours(jobs, p, 1), run_peer(jobs, p), strict=True)
        difference = max(np.abs(ours - expected).max() for ours, expected in results)
        agreement = f"largest difference of marginals {difference:.0e}"
        for count in sorted({1, threads}):
            title = f"dense CRF, {name}, L = {labels}, {count} thread{'s' * (count > 1)}"
            ours = partial(run_ours, jobs, p, count)
            target = TARGETS.get((labels, count))
            rows.append(compare(title, ours, theirs, repetitions, len(images), target, agreement))
    jobs = [(image, unary(image, 2, seed)) for seed, image in enumerate(images)]
    others = [unary(image, 2, seed) for seed, image in enumerate(images, start=1000)]
    both = jobs + [(image, other) for image, other in zip(images, others, strict=True)]
    ours_in_pairs = partial(run_ours_in_pairs, jobs, others, p)
    title = f"dense CRF, {name}, L = 2, two unaries of an image, 1 thread"
    return [*rows, compare(title, ours_in_pairs, partial(run_peer, both, p), repetitions, len(images), 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the dense CRF against pydensecrf2.")
    parser.add_argument("photographs", nargs="?", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parameters", nargs="*", default=["affinitynet"], choices=PARAMETERS)
    arguments = parser.parse_args()
    images = photographs(arguments.photographs, arguments.images)
    sizes = ", ".join(sorted({f"{image.shape[1]} × {image.shape[0]}" for image in images}))
    conditions = f"{len(images)} photographs, {sizes}; 10 iterations, lattices built; times of one image"
    table = measure.Table("Dense CRF against pydensecrf2", conditions, cuda=True)
    for name in arguments.parameters:
        table.rows += compare_all(name, images, arguments.repetitions, arguments.threads)
    measure.publish(table)


if __name__ == "__main__":
    main()
