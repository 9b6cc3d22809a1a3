"""Random walks on a CUDA device, images in batches, against our compiled steps on one CPU core.

    python benchmarks/random_walk_cuda.py [--batch 16] [--size 375 500] [--repeats 5]

IRNet's walk (stride 4, 256 steps, 3 classes), as powers and as Chebyshev series, and AffinityNet's (stride 8, 64 steps,
21 maps), from tensors on the device to tensors on the device.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

import measure
from weakseg.ops.randomwalk import pair_offsets, random_walk

WALKS = {  # stride, maps, β, steps, Chebyshev
    "IRNet": (4, 3, 10, 256, False),
    "IRNet, Chebyshev": (4, 3, 10, 256, True),
    "AffinityNet": (8, 21, 8, 64, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time random walks on a CUDA device against one CPU core.")
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--batch", type=int, default=16, help="images at once")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing was measured.")
    print(f"{arguments.batch} images at once, {torch.cuda.get_device_name()}; {measure.processor()}")
    generator = torch.Generator().manual_seed(0)
    for title, (stride, maps, beta, steps, chebyshev) in WALKS.items():
        size = [-(-side // stride) for side in arguments.size]
        values = torch.rand(arguments.batch, maps, *size, generator=generator)
        affinities = torch.rand(arguments.batch, len(pair_offsets(5)), *size, generator=generator)

        def walk(values: torch.Tensor, affinities: torch.Tensor, beta=beta, steps=steps, chebyshev=chebyshev):
            return random_walk(values, affinities, beta=beta, steps=steps, chebyshev=chebyshev)

        compare(title, walk, (values, affinities), arguments.repeats)


def compare(title: str, walk: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], repeats: int) -> None:
    one, on_device = [tensor[:1] for tensor in inputs], [tensor.cuda() for tensor in inputs]

    def batch() -> torch.Tensor:
        walked = walk(*on_device)
        torch.cuda.synchronize()
        return walked

    difference = float((batch()[:1].cpu() - walk(*one)).abs().max())
    assert difference < 1e-5, f"{title}: the two sides differ by {difference:g}"
    times = [(measure.timed(batch)[0] / len(inputs[0]), measure.timed(lambda: walk(*one))[0]) for _ in range(repeats)]
    ours, theirs = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(f"{title}: {ours:.2f} ms an image, CPU {theirs:.1f} ms: {measure.spread([b / a for a, b in times])} times")


if __name__ == "__main__":
    main()
