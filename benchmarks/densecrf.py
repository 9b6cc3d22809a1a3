"""Dense CRF: how much faster than pydensecrf2, which computes the same thing on one thread?

    pip install weakseg[bench]
    python benchmarks/densecrf.py [FOLDER OF PHOTOGRAPHS]

Both run in turn in one process, on the same unaries, lattices included, ten iterations. Lattices of the Gaussian
kernel, which depend on the size of the image alone, are kept between images as in a real run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydensecrf import densecrf as peer

import measure
from weakseg.ops.crf_features import bilateral_features
from weakseg.ops.crf_parameters import PARAMETERS, CRFParameters
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.permutohedral import Lattice

TITLE = "Dense CRF against pydensecrf2"
LABELS = (2, 3, 21)
# (labels, threads) to how many times faster than the peer's one thread we claim to be.
TARGETS = {(2, 1): 3.5, (3, 1): 3.5, (2, 2): 6.0, (3, 2): 6.0, (21, 2): 4.0}
Job = tuple[np.ndarray, np.ndarray]  # an image and its unary


def unary(image: np.ndarray, labels: int, seed: int) -> np.ndarray:
    """A smooth random labelling, none of whose labels is absent: nothing can be left out."""
    height, width = image.shape[:2]
    coarse = np.random.default_rng(seed).normal(0, 2, (labels, 8, 8)).astype(np.float32)
    fine = np.stack(
        [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in coarse]
    )
    powers = np.exp(fine)
    return unary_from_probabilities(powers / powers.sum(0))


def run_ours(jobs: Sequence[Job], p: CRFParameters, threads: int) -> list[np.ndarray]:
    if threads == 1:
        return [dense_crf(image, costs, p) for image, costs in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: dense_crf(*job, p), jobs))


def run_ours_in_pairs(jobs: Sequence[Job], others: Sequence[np.ndarray], p: CRFParameters) -> list[np.ndarray]:
    pairs = zip(jobs, others, strict=True)
    firsts, seconds = zip(*(dense_crf(image, [costs, other], p) for (image, costs), other in pairs), strict=True)
    return [*firsts, *seconds]


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


def largest_difference(ours: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Of marginals; raises where the two sides do not agree."""
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, expected, strict=True))
    assert difference < 1e-2, f"the two sides differ by {difference:g}"
    return difference


class Floor:
    """What one image moves: the cache, not arithmetic, bounds all steps on the lattice."""

    def __init__(self, images: Sequence[np.ndarray], p: CRFParameters) -> None:
        features = (bilateral_features(image, p.bilateral_sxy, p.bilateral_srgb) for image in images)
        lattices = [Lattice.of(of_image) for of_image in features]
        self.points, self.vertices = (
            statistics.mean(getattr(lattice, size) for lattice in lattices) for size in ("points", "vertices")
        )
        self.corners, self.iterations = lattices[0].weights.shape[1], p.iterations

    def __call__(self, labels: int, problems: int, seconds: float) -> str:
        """The bilateral kernel's share alone: splat and slice read an index and a weight for each corner of each point
        and read (and write) a vertex's values; blurring reads three vertices and writes one along each axis. One label
        of each problem follows from the others."""
        channels = (labels - 1) * problems
        values = 4 * channels
        spread_and_gathered = self.points * self.corners * (2 * (4 + 4) + 3 * values)
        blurred = self.vertices * self.corners * (2 * 4 + 4 * values)
        moved = self.iterations * (spread_and_gathered + blurred)
        operations = self.iterations * channels * 4 * (self.points + self.vertices) * self.corners
        return (
            f"the bilateral kernel has {self.vertices:,.0f} vertices for {self.points:,.0f} pixels; its "
            f"{self.iterations} filterings alone move {moved / 1e9:.1f} GB to and from places in no order, at least "
            f"{moved / seconds / 1e9:.1f} GB/s with all else (a copy in order: {measure.copy_rate():.1f} GB/s), for "
            f"{operations / 1e9:.1f} GFLOP at {operations / seconds / 1e9:.1f} GFLOP/s"
        )


def compare_all(name: str, images: Sequence[np.ndarray], repeats: int, threads: int) -> list[measure.Row]:
    p = PARAMETERS[name]
    floor, rows = Floor(images, p), []
    for labels in LABELS:
        jobs = [(image, unary(image, labels, seed)) for seed, image in enumerate(images)]
        sides = {count: partial(run_ours, jobs, p, count) for count in sorted({1, threads})}
        difference = largest_difference(sides[1](), run_peer(jobs, p))  # compiles, and fills the cache of lattices
        taken = measure.in_turn([partial(run_peer, jobs, p), *sides.values()], repeats)
        for count, ours in zip(sides, taken[1:], strict=True):
            rows.append(
                row(
                    f"dense CRF, {name}, L = {labels}, {count} thread{'s' * (count > 1)}",
                    (ours, taken[0]),
                    len(images),
                    TARGETS.get((labels, count)),
                    difference,
                    floor(labels, 1, statistics.median(ours) / len(images)),
                )
            )
    jobs = [(image, unary(image, 2, seed)) for seed, image in enumerate(images)]
    others = [unary(image, 2, seed) for seed, image in enumerate(images, start=1000)]
    both = jobs + [(image, other) for image, other in zip(images, others, strict=True)]
    in_pairs, theirs = partial(run_ours_in_pairs, jobs, others, p), partial(run_peer, both, p)
    difference = largest_difference(in_pairs(), theirs())
    taken = measure.in_turn([theirs, in_pairs], repeats)
    title = f"dense CRF, {name}, L = 2, two unaries of an image, 1 thread"
    limit = floor(2, 2, statistics.median(taken[1]) / len(images))
    return [*rows, row(title, (taken[1], taken[0]), len(images), 5, difference, limit)]


def row(
    title: str,
    taken: tuple[Sequence[float], Sequence[float]],
    images: int,
    target: float | None,
    difference: float,
    floor: str,
) -> measure.Row:
    times = (measure.milliseconds(side, images) for side in taken)
    agreement = f"largest difference of marginals {difference:.0e}"
    return measure.Row(title, *times, measure.ratios(*taken), target, agreement, floor)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the dense CRF against pydensecrf2.")
    parser.add_argument("photographs", nargs="?", type=Path, default=measure.PHOTOGRAPHS)
    parser.add_argument("--images", type=int, default=measure.usually(4, 1))
    parser.add_argument("--repeats", type=int, default=measure.usually(3, 1))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parameters", nargs="*", default=["affinitynet"], choices=PARAMETERS)
    arguments = parser.parse_args()
    images = measure.photographs(TITLE, arguments.photographs, arguments.images)
    sizes = ", ".join(sorted({f"{image.shape[1]} × {image.shape[0]}" for image in images}))
    conditions = f"{len(images)} photographs, {sizes}; lattices built; times of one image"
    table = measure.Table(TITLE, conditions)
    for name in arguments.parameters:
        table.rows += compare_all(name, images, arguments.repeats, arguments.threads)
    measure.publish(table)


if __name__ == "__main__":
    main()
