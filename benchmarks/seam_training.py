"""Time a training step of SEAM with ResNet-38 against the form of the paper's program; on CUDA, measure its throughput.

    python benchmarks/seam_training.py [--size 448] [--batch 1]

On a CPU one step (forward and backward of both views) is timed both ways in turn, on the same weights and images. The
paper's program carries all classes through dense N × N matrices and full-size maps; ours carries the classes present,
in blocks. The backbone, most of the work, is the same in both; the part behind it is timed alone as well. On CUDA,
images per second and peak memory follow in fp32 and bf16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import measure
from weakseg.methods.seam import (
    SEAM,
    cross_loss,
    equivariance_loss,
    min_max_normalised,
    minimum_loss,
    normalised_scores,
    resized,
    scaled_size,
)
from weakseg.models.registry import BackboneSettings

CLASSES = 20
Batch = dict[str, Tensor]


class DenseSEAM(SEAM):
    """The same losses as the paper's program computes them."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        images, tags = batch["image"], batch["tags"]
        size = scaled_size(images.shape[2:], self.settings.second_scale)
        given = torch.cat([torch.ones_like(tags[:, :1]), tags], dim=1)[:, :, None, None]
        maps, revised = zip(*(self.dense_view(x) for x in (images, resized(images, size))), strict=True)
        a = [resized(min_max_normalised(m[:, 1:]), size) * given[:, 1:] for m in maps]
        b = [resized(min_max_normalised(r), size) * given for r in revised]
        means = [F.multilabel_soft_margin_loss(m.mean((2, 3))[:, 1:], tags) for m in maps]
        return {
            "classification": torch.stack(means).mean(),
            "equivariance": equivariance_loss(a[0], a[1], CLASSES),
            "cross": cross_loss(a[1], b[0], CLASSES) + cross_loss(a[0], b[1], CLASSES),
            "minimum": torch.stack([minimum_loss(r, given[:, 1:]) for r in revised]).mean(),
        }

    def dense_view(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw, features = self.raw_maps(images)
        features = features.flatten(2)
        unit = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-5)
        similarity = (unit.mT @ unit).relu()
        weights = similarity / (similarity.sum(1, keepdim=True) + 1e-5)
        revised = (normalised_scores(raw).flatten(2) @ weights).unflatten(2, raw.shape[2:])
        return resized(raw.float(), images.shape[2:]), resized(revised, images.shape[2:])


def build(method: type[SEAM], weights: dict[str, Tensor] | None = None) -> SEAM:
    torch.manual_seed(0)
    backbone = BackboneSettings(name="resnet38", output_stride=8, weights=None, frozen_stages=1)
    network = method(SEAM.Settings(backbone=backbone), CLASSES).eval()  # without dropout, so that both agree
    if weights is not None:
        network.load_state_dict(weights, assign=True)
    return network


def images_and_tags(batch: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tags = torch.zeros(batch, CLASSES)
    tags[:, 0] = 1
    tags[::2, 7] = 1
    return {"image": torch.randn(batch, 3, size, size, generator=generator), "tags": tags}


def step(network: SEAM, batch: Batch) -> Tensor:
    network.zero_grad(set_to_none=True)
    total = torch.stack(list(network.losses(batch).values())).sum()
    total.backward()
    return total.detach()


class Behind(torch.nn.Module):
    """A stand-in for the backbone: its stages' features as they were computed before for both views."""

    def __init__(self, network: SEAM, batch: Batch) -> None:
        super().__init__()
        small = resized(batch["image"], scaled_size(batch["image"].shape[2:], network.settings.second_scale))
        with torch.no_grad():
            self.features = {x.shape: network.backbone(x) for x in (batch["image"], small)}

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features[images.shape]


def compare(title: str, ours: Callable[[], Tensor], dense: Callable[[], Tensor], repeats: int) -> measure.Row:
    losses: dict[str, list[Tensor]] = {"ours": [], "dense": []}
    taken = measure.alternate(lambda: losses["ours"].append(ours()), lambda: losses["dense"].append(dense()), repeats)
    found, expected = (torch.stack(side) for side in losses.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    times = (measure.milliseconds(side) for side in taken)
    agreement = f"largest difference of losses {float((found - expected).abs().max()):.0e}"
    return measure.Row(title, *times, measure.ratios(*taken), None, agreement)


def on_cuda(batch: int, size: int, steps: int) -> str:
    """Images per second and peak memory, in words."""
    if not torch.cuda.is_available():
        return "On CUDA, images per second and memory in fp32 and bf16: not measured: no CUDA device."
    found = []
    for name, method in (("ours", SEAM), ("dense", DenseSEAM)):
        for precision, autocast in (("fp32", False), ("bf16", True)):
            network = build(method).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = {key: value.cuda() for key, value in images_and_tags(batch, size).items()}
            torch.cuda.reset_peak_memory_stats()
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                step(network, inputs)
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(steps):
                    step(network, inputs)
                torch.cuda.synchronize()
            rate = steps * batch / (time.perf_counter() - start)
            peak = torch.cuda.max_memory_allocated() / 2**30
            found.append(f"{precision}, {name}: {rate:.1f} images/s, peak {peak:.1f} GiB")
    return f"On CUDA ({torch.cuda.get_device_name()}), {batch} images of {size}²: {'; '.join(found)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=measure.usually(448, 64))
    parser.add_argument("--batch", type=int, default=1, help="images of a step on the CPU")
    parser.add_argument("--cuda-batch", type=int, default=8)
    parser.add_argument("--cuda-steps", type=int, default=measure.usually(20, 1))
    parser.add_argument("--repeats", type=int, default=measure.usually(2, 1))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = measure.Table(
        "A training step of SEAM against dense matrices and full-size maps",
        f"ResNet-38, {arguments.batch} image(s) of {arguments.size}²; {arguments.threads} thread(s) of torch",
    )
    batch = images_and_tags(arguments.batch, arguments.size)
    ours = build(SEAM)
    dense = build(DenseSEAM, ours.state_dict())
    behind = Behind(ours, batch)
    backbones = ours.backbone, dense.backbone
    ours.backbone = dense.backbone = behind  # type: ignore[assignment]
    sides = (lambda: step(ours, batch)), (lambda: step(dense, batch))
    table.rows.append(compare("SEAM's step behind the backbone", *sides, 3 * arguments.repeats))
    ours.backbone, dense.backbone = backbones
    table.rows.append(compare("SEAM's whole step", *sides, arguments.repeats))
    table.remark = on_cuda(arguments.cuda_batch, arguments.size, arguments.cuda_steps)
    measure.publish(table)


if __name__ == "__main__":
    main()
