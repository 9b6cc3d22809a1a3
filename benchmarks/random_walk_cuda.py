"""Random walks on a CUDA device, images in batches, against our compiled steps on one CPU core.

    python benchmarks/random_walk_cuda.py [--batch 16] [--size 375 500] [--repeats 5]

IRNet's walk (stride 4, 256 steps, 3 classes), as powers and as Chebyshev series, and AffinityNet's (stride 8, 64 steps,
21 maps), from tensors on the device to tensors on the device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

import measure
from weakseg.ops.randomwalk import pair_offsets, random_walk

TITLE = "Random walks on CUDA against our compiled steps on one CPU core"
WALKS = {  # stride, maps, β, steps, Chebyshev
    "IRNet": (4, 3, 10, 256, False),
    "IRNet, Chebyshev": (4, 3, 10, 256, True),
    "AffinityNet": (8, 21, 8, 64, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time random walks on a CUDA device against one CPU core.")
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--batch", type=int, default=measure.usually(16, 2), help="images at once")
    parser.add_argument("--repeats", type=int, default=measure.usually(5, 1))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        measure.not_measured(TITLE, "no CUDA device")
    table = measure.Table(
        TITLE, f"{arguments.batch} images at once, {torch.cuda.get_device_name()}; times of one image"
    )
    generator = torch.Generator().manual_seed(0)
    for title, (stride, maps, beta, steps, chebyshev) in WALKS.items():
        size = [-(-side // stride) for side in arguments.size]
        values = torch.rand(arguments.batch, maps, *size, generator=generator)
        affinities = torch.rand(arguments.batch, len(pair_offsets(5)), *size, generator=generator)

        def walk(values: torch.Tensor, affinities: torch.Tensor, beta=beta, steps=steps, chebyshev=chebyshev):
            return random_walk(values, affinities, beta=beta, steps=steps, chebyshev=chebyshev)

        table.rows.append(compare(title, walk, (values, affinities), arguments.repeats))
    measure.publish(table)


def compare(
    title: str, walk: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], repeats: int
) -> measure.Row:
    one, on_device = [tensor[:1] for tensor in inputs], [tensor.cuda() for tensor in inputs]

    def batch() -> torch.Tensor:
        walked = walk(*on_device)
        torch.cuda.synchronize()
        return walked

    difference = float((batch()[:1].cpu() - walk(*one)).abs().max())
    assert difference < 1e-5, f"{title}: the two sides differ by {difference:g}"
    batches, theirs = measure.alternate(batch, lambda: walk(*one), repeats)
    ours = [taken / len(inputs[0]) for taken in batches]
    agreement = f"largest difference {difference:.0e}"
    return measure.Row(
        title, measure.milliseconds(ours), measure.milliseconds(theirs), measure.ratios(ours, theirs), None, agreement
    )


if __name__ == "__main__":
    main()
