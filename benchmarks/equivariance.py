"""How much activation maps change when the image is resized: the mean of |map(resized x) - resized map(x)|.

    python benchmarks/equivariance.py DATA CAM=runs/cam/cam/model SEAM=runs/seam/cam/model --split train --images 100

Of every image the maps of the classes present are compared at the size of the small view, each map normalised from 0 at
its minimum to 1 at its maximum as SEAM's loss does it. A network that is equivariant has 0. Published: equation 1 of
Wang et al., CVPR 2020.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.data.opening import open_dataset
from weakseg.methods.seam import min_max_normalised, resized, scaled_size
from weakseg.methods.store import load_model
from weakseg.ops.activation import normalise_image


@torch.inference_mode()
def change(network: nn.Module, sample: Sample, scale: float) -> float:
    """The mean over pixels and present classes for one image."""
    present = [label - 1 for label in sorted(sample.labels.present())]
    image = torch.from_numpy(normalise_image(read_image(sample.image)))[None]
    size = scaled_size(image.shape[2:], scale)
    large, small = (
        min_max_normalised(resized(network.activation_maps({"image": view})[:, present], size))  # type: ignore[operator]
        for view in (image, resized(image, size))
    )
    return float((large - small).abs().mean())


def spread_over(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of the samples with a label, evenly from the first to the last."""
    known = [sample for sample in samples if sample.labels.present()]
    return [known[int(i)] for i in np.linspace(0, len(known) - 1, min(count, len(known)))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the equivariance of trained localisers.")
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="a name and the folder of a trained localiser")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.3, 0.5, 0.75])
    arguments = parser.parse_args()
    samples = spread_over(open_dataset(arguments.data).split(arguments.split), arguments.images)
    print(f"{len(samples)} images of {arguments.data.name}, split {arguments.split}; means and their standard errors")
    for model in arguments.models:
        name, _, folder = model.partition("=")
        network = load_model(Path(folder)).network
        for scale in arguments.scales:
            values = np.array([change(network, sample, scale) for sample in samples])
            print(f"{name:10} scale {scale}: {values.mean():.4f} ± {values.std(ddof=1) / len(values) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
