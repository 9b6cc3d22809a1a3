"""The training loop against a bare loop: the same networks, batches and updates, without checks, log and progress.

    python benchmarks/training_loop.py [--steps 6] [--repeats 5] [--size 224]

The bare loop draws the same batches from the same data set, sets the learning rates, computes the losses and their
gradient and updates the weights. Ours also looks for numbers that are not finite, writes a line of log for each update,
shows progress, keeps what a resumed run needs, and shares the work of processes. Both end with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import measure
from weakseg.data.loading import Batches, Draw, Order
from weakseg.methods.base import Batch, Method, means
from weakseg.methods.cam import CAM
from weakseg.methods.deeplab import DeepLab
from weakseg.models.registry import BackboneSettings
from weakseg.optimisation import TrainSettings, build_optimiser
from weakseg.runtime import RuntimeSettings, start
from weakseg.training import train_network

CLASSES, IMAGES, SEED = 8, 32, 0
BACKBONE = BackboneSettings(name="mobilenet_v2", output_stride=16, weights=None, frozen_stages=2)
TITLE = "Training loop against a bare loop over the same batches"


class Noise(Dataset[dict[str, Tensor]]):
    """Images of noise with labels, made once: what is timed is the loop, not the loading."""

    images_per_draw: ClassVar[int] = 1

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(IMAGES, 3, size, size, generator=generator)
        self.labels = torch.randint(0, CLASSES, (IMAGES, size, size), generator=generator).to(torch.uint8)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        tags = torch.zeros(CLASSES)
        tags[draw.image % CLASSES] = 1
        return {"image": self.images[draw.image], "labels": self.labels[draw.image], "tags": tags}


def bare(network: Method, images: Noise, settings: TrainSettings) -> Method:
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = build_optimiser(settings, network.param_groups(settings.lr))
    rates = [group["lr"] for group in optimiser.param_groups]
    order = Order(len(images), settings.batch_size, SEED)
    steps = settings.total_steps(order)
    for step, loaded in enumerate(DataLoader(images, batch_sampler=Batches(order, 0, steps))):
        batch: Batch = {**loaded, "image": loaded["image"].contiguous(memory_format=torch.channels_last)}
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * settings.rate_factor(step, steps, order.steps_per_epoch)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(means(network.losses(batch), network.counts(batch)).values())).sum().backward()
        optimiser.step()
    return network


def ours(network: Method, images: Noise, settings: TrainSettings) -> Method:
    runtime = RuntimeSettings(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        train_network(start(runtime), network, images, settings, runtime, folder=Path(folder), seed=SEED)
    return network


def row(line: str, build: Callable[[], Method], settings: TrainSettings, size: int, repeats: int) -> measure.Row:
    torch.manual_seed(0)
    network, images = build(), Noise(size)
    trained, expected = (loop(copy.deepcopy(network), images, settings) for loop in (ours, bare))
    state = expected.state_dict()
    far = max(float((value - state[name]).abs().max()) for name, value in trained.state_dict().items())
    seconds = measure.alternate(
        lambda: ours(copy.deepcopy(network), images, settings),
        lambda: bare(copy.deepcopy(network), images, settings),
        repeats,
    )
    steps = settings.total_steps(Order(IMAGES, settings.batch_size, SEED))
    return measure.Row(
        line,
        f"{measure.milliseconds(seconds[0], steps)} an update",
        f"{measure.milliseconds(seconds[1], steps)} an update",
        measure.ratios(*seconds),
        target=0.95,
        agreement=f"largest difference of a weight afterwards: {far:g}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=measure.usually(6, 1))
    parser.add_argument("--repeats", type=int, default=measure.usually(5, 1))
    parser.add_argument("--size", type=int, default=measure.usually(224, 64))
    options = parser.parse_args()
    rows = [
        row(
            "CAM, MobileNetV2, 16 images",
            lambda: CAM(CAM.Settings(backbone=BACKBONE), CLASSES),
            TrainSettings(steps=options.steps, batch_size=16),
            options.size,
            options.repeats,
        ),
        row(
            "DeepLab, MobileNetV2, 8 images",
            lambda: DeepLab(DeepLab.Settings(backbone=BACKBONE, rates=(3, 6), loss_at="image"), CLASSES),
            TrainSettings(steps=options.steps, batch_size=8, lr=1e-4),
            options.size,
            options.repeats,
        ),
    ]
    conditions = f"{options.size} × {options.size} pixels, {measure.machine()}"
    measure.publish(measure.Table(TITLE, conditions, rows))


if __name__ == "__main__":
    main()
