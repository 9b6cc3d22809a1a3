"""What limits AffinityNet in a run: its evidence, its affinities, and what perfect affinities would give.

    python benchmarks/affinity_quality.py RUN [--every 4]

RUN is a run with a stage `maps` and images with masks; if it has a stage `affinity` too, its network is measured. One
in so many of the masked images is used. Three tables: how precise the sure things and the sure background of the dense
CRF are for several α; the mean affinity of pairs of each kind, by the ground truth; the mIoU of a walk with affinities
from the ground truth.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import read_image
from weakseg.data.opening import open_dataset
from weakseg.files import read_json
from weakseg.labels import VOID
from weakseg.methods.affinitynet import pair_affinities, pairs
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps, normalise_image
from weakseg.ops.background import with_background
from weakseg.ops.confusion import Confusion
from weakseg.ops.crf_parameters import PARAMETERS
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.pairs import kinds_of_pairs, shifted
from weakseg.ops.randomwalk import lopsided_affinities, random_walk, reduced_radius
from weakseg.pipeline.stages.maps import read_maps

ALPHAS = (0.5, 1, 2, 4, 8, 16, 24)
WALK_ALPHAS, LOG2_STEPS, STRIDE = (1, 1.5, 2, 3, 4, 8, 16), (4, 6, 8), 8


def evidence(samples: Sequence[Sample], run: Path, crf: str) -> None:
    counts = np.zeros((len(ALPHAS), 6))
    for sample in samples:
        maps = read_maps(run / "maps", sample)
        truth, labels = truth_of(sample), np.array([0, *maps.labels])
        unaries = [unary_from_probabilities(with_background(maps.upsampled(), alpha)) for alpha in ALPHAS]
        known = truth != VOID
        for row, marginals in zip(counts, dense_crf(read_image(sample.image), unaries, PARAMETERS[crf]), strict=True):
            found = labels[marginals.argmax(0)]
            for first, thing in ((0, True), (3, False)):
                sure, real = (found > 0) == thing, (truth > 0) == thing
                row[first : first + 3] += [
                    (known & sure & (found == truth)).sum(),
                    (known & sure).sum(),
                    (known & real).sum(),
                ]
    print(f"Evidence with the CRF {crf}, {len(samples)} images")
    print("  alpha  things: precision  recall   background: precision  recall")
    for alpha, (right, sure, real, right_0, sure_0, real_0) in zip(ALPHAS, counts, strict=True):
        print(
            f"  {alpha:5}  {right / sure:17.3f}  {right / real:6.3f}  {right_0 / sure_0:22.3f}  {right_0 / real_0:6.3f}"
        )


@torch.no_grad()
def affinities(samples: Sequence[Sample], run: Path) -> None:
    network = load_model(run / "affinity" / "model").network
    stride, sums = network.settings.stride, np.zeros((3, 2))
    for sample in samples:
        image = torch.from_numpy(normalise_image(read_image(sample.image)))
        features = network.features(F.pad(image, (0, -image.shape[2] % stride, 0, -image.shape[1] % stride))[None])
        size = (features.shape[-2], features.shape[-1])
        radius = reduced_radius(size)
        found = pair_affinities(features, radius)
        for row, kind in zip(sums, pairs(cells(truth_of(sample), stride)[None], radius), strict=True):
            row += [float((found * kind).sum()), float(kind.sum())]
    background, foreground, different = sums[:, 0] / sums[:, 1]
    print(f"Mean affinity: background {background:.3f}, one class {foreground:.3f}, different {different:.3f}")


def oracle(samples: Sequence[Sample], run: Path, dataset: Dataset) -> None:
    """The mIoU of a walk with affinities from the ground truth."""
    found = {key: Confusion(len(dataset.classes) + 1) for key in itertools.product(WALK_ALPHAS, LOG2_STEPS)}
    for sample in samples:
        truth = truth_of(sample)
        for key, labels in oracle_masks(truth, read_maps(run / "maps", sample)):
            found[key].update(truth, labels, sample.name)
    print(f"mIoU in percent with affinities from the ground truth, {len(samples)} images")
    print("  alpha  " + "  ".join(f"2^{power} steps" for power in LOG2_STEPS))
    for alpha in WALK_ALPHAS:
        print(f"  {alpha:5}  " + "  ".join(f"{100 * found[alpha, power].mean_iou:9.1f}" for power in LOG2_STEPS))


def oracle_masks(truth: np.ndarray, maps: ActivationMaps) -> Iterator[tuple[tuple[float, int], np.ndarray]]:
    """The label map (H, W) for every alpha and number of steps. All alphas walk together, from power to power."""
    true_cells = cells(truth, STRIDE)
    size = (true_cells.shape[0], true_cells.shape[1])
    radius = reduced_radius(size)
    # Void cells are walls, so that nothing leaks through the void borders of things.
    alike = [kinds_of_pairs(*ends) for ends in shifted(true_cells[None], radius)]
    same = torch.stack([background | foreground for background, foreground, _ in alike], 1).flatten(2)
    weights = lopsided_affinities(same[0].float(), size, radius)
    classes = maps.upsampled()
    scores = torch.from_numpy(np.concatenate([with_background(classes, alpha) for alpha in WALK_ALPHAS]))
    walked = F.avg_pool2d(F.pad(scores, (0, -scores.shape[2] % STRIDE, 0, -scores.shape[1] % STRIDE)), STRIDE)
    labels, done = np.array([0, *maps.labels], np.int16), 0
    for power in LOG2_STEPS:
        walked = random_walk(walked, weights, radius=radius, beta=1, steps=2**power - done)
        done = 2**power
        for alpha, of_alpha in zip(WALK_ALPHAS, walked.clamp(0, 1).split(len(labels)), strict=True):
            large = ActivationMaps(labels, of_alpha.numpy(), maps.size, STRIDE).upsampled()
            yield (alpha, power), labels.astype(np.uint8)[large.argmax(0)]


def truth_of(sample: Sample) -> np.ndarray:
    assert sample.mask is not None
    return sample.mask.read()


def cells(truth: np.ndarray, stride: int) -> torch.Tensor:
    """The label in the middle of each cell (h, w)."""
    rows, columns = (np.minimum(np.arange(0, side, stride) + stride // 2, side - 1) for side in truth.shape)
    return torch.as_tensor(truth[np.ix_(rows, columns)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--every", type=int, default=4)
    arguments = parser.parse_args()
    data = read_json(arguments.run / "data.json")
    dataset = open_dataset(Path(data["root"]))
    names = set(data["names"]["score"])
    masked = [sample for sample in dataset.split(data["splits"]["score"]) if sample.name in names]
    samples = masked[:: arguments.every]
    for crf in ("affinitynet", "irnet"):
        evidence(samples, arguments.run, crf)
    if (arguments.run / "affinity" / "model").is_dir():
        affinities(samples, arguments.run)
    oracle(samples, arguments.run, dataset)


if __name__ == "__main__":
    main()
