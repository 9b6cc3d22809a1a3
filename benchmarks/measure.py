"""What the comparisons with dense N × N matrices share: agreement, alternating times, peak memory, the machine.

Peak memory is measured in a process of its own for each side: the growth of the resident memory over what inputs,
libraries and compiled code take (a small example runs before). Linux only, as the high-water mark that is read,
VmHWM, must be reset first. torch's allocator keeps no counts on the CPU, and tracemalloc does not see its memory.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

Size = tuple[int, int]


class Comparison(NamedTuple):
    """Two ways to compute one tensor; the baseline is run at most so often."""

    ours: Callable[[], torch.Tensor]
    baseline: Callable[[], torch.Tensor]
    baseline_repeats: int = 5


# From the size of a map to comparisons by title.
Prepare = Callable[[Size], dict[str, Comparison]]


def main(description: str, prepare: Prepare, stride: int, tolerance: float) -> None:
    """Run the comparisons of a script for images of `--size` at `stride`, and print one line for each."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="how often each side is timed")
    parser.add_argument("--threads", type=int, default=1, help="of torch, which our compiled kernels do not use")
    parser.add_argument("--peak", nargs=2, metavar=("TITLE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    height, width = (-(-side // stride) for side in arguments.size)
    if arguments.peak:
        title, side = arguments.peak
        print(memory_growth(*(getattr(prepare(size)[title], side) for size in ((12, 14), (height, width)))))
        return
    print(f"{processor()}, {os.cpu_count()} cores, {arguments.threads} thread(s); torch {torch.__version__}")
    image = f"image {arguments.size[0]} × {arguments.size[1]}, stride {stride}"
    print(f"{image}: N = {height} · {width} = {height * width}; medians (least … largest)\n")
    for title, comparison in prepare((height, width)).items():
        compare(title, comparison, arguments.repeats, tolerance)


def compare(title: str, comparison: Comparison, repeats: int, tolerance: float) -> None:
    ours, baseline = [], []
    expected = result = comparison.ours()  # compiles
    for i in range(repeats):
        if i < comparison.baseline_repeats:
            taken, expected = timed(comparison.baseline)
            baseline.append(taken)
        taken, result = timed(comparison.ours)
        ours.append(taken)
    difference = float((result - expected).abs().max())
    assert difference <= tolerance, f"{title}: the two sides differ by {difference:g}, more than {tolerance:g}"
    # Where both sides ran next to each other, the same moments are compared.
    ratios = [b / o for b, o in zip(baseline, ours, strict=False)]
    ours_mib, baseline_mib = (peak_in_child(title, side) for side in ("ours", "baseline"))
    print(f"{title}: {spread(ratios)} times as fast, 1/{baseline_mib / ours_mib:.1f} of the memory")
    print(f"    ours      {spread([1e3 * t for t in ours])} ms, peak {ours_mib:.1f} MiB")
    print(f"    baseline  {spread([1e3 * t for t in baseline])} ms, peak {baseline_mib:.1f} MiB")
    print(f"    largest difference {difference:.1e}", flush=True)


def timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_in_child(title: str, side: str) -> float:
    """The memory growth of one side in MiB, run by the same script with the same arguments."""
    command = [sys.executable, *sys.argv, "--peak", title, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_growth(small: Callable[[], torch.Tensor], work: Callable[[], torch.Tensor]) -> float:
    small()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = memory("VmHWM")
    work()
    return memory("VmHWM") - before


def memory(entry: str) -> float:
    """An entry of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 1024


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} … {max(values):,.1f})"
