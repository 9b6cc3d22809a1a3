"""What the benchmarks share: sides that alternate, peak memory, the machine's rates, and the table that they end in.

A benchmark compares ours with a peer: both run in turn in one process, so that a machine that is busy for a moment is
so for both; their results must agree; a ratio is the peer's time over ours of the same turn. A script makes a `Table`
and publishes it, which prints it; where it lacks what it needs, it says so with `not_measured`. `report.py` collects
the tables of all scripts.

Peak memory is measured in a process of its own for each side: the growth of the resident memory over what inputs,
libraries and compiled code take (a small example runs before). Linux only, as the high-water mark that is read,
VmHWM, must be reset first. torch's allocator keeps no counts on the CPU, and tracemalloc does not see its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from PIL import Image

T = TypeVar("T")
Size = tuple[int, int]
Work = Callable[[], Any]

TABLE_FILE = "WEAKSEG_BENCHMARK_TABLE"
"""The variable of the environment that names the file to which a script's table goes as well, as JSON."""

SMOKE = "WEAKSEG_BENCHMARK_SMOKE"
"""The variable of the environment that makes all defaults tiny: what is measured then says only that a script runs."""

SHARED = Path(__file__).resolve().parents[2] / "shared"
PHOTOGRAPHS = SHARED / "data/voc8_native"


def usually(full: T, smoke: T) -> T:
    """The default of a script's option, and what it is to be where scripts are only tried."""
    return smoke if SMOKE in os.environ else full


def photographs(title: str, folder: Path, count: int) -> list[np.ndarray]:
    """The first photographs (H, W, 3) below a folder, at most `count`; for want of any, the table of that title says
    so."""
    files = sorted(folder.rglob("*.jpg"))[:count]
    if not files:
        not_measured(title, f"no photographs (*.jpg) in {folder.name}; name a folder that has some")
    part = usually(slice(None), slice(96))
    return [np.array(Image.open(file).convert("RGB"))[part, part].copy() for file in files]


# Tables


@dataclass
class Row:
    """One comparison: `ratios` are how many times better ours was, turn by turn, `target` is the least median that is
    claimed, and `floor` says what keeps ours from being faster (operations or bytes, and the rate they ran at)."""

    line: str
    ours: str
    peer: str
    ratios: list[float]
    target: float | None = None
    agreement: str = ""
    floor: str = ""


@dataclass
class Table:
    """The rows of one claim; none, if it was not measured, and `conditions` says why."""

    title: str
    conditions: str
    rows: list[Row] = field(default_factory=list)
    remark: str = ""


def publish(table: Table) -> None:
    """Print a table, and hand it to whoever collects tables."""
    print(f"{table.title}\n{table.conditions}\n")
    for row in table.rows:
        target = "" if row.target is None else f"; target {row.target:g}: {'met' if met(row) else 'MISSED'}"
        print(f"{row.line}: {spread(row.ratios)} times{target}")
        print(f"    ours {row.ours}, peer {row.peer}")
        for remark in filter(None, (row.agreement, row.floor)):
            print(f"    {remark}")
    print(table.remark, flush=True)
    if TABLE_FILE in os.environ:
        Path(os.environ[TABLE_FILE]).write_text(json.dumps(asdict(table)))


def not_measured(title: str, reason: str) -> NoReturn:
    """Publish that a claim cannot be measured here, and end the script; that is no failure of it."""
    publish(Table(title, f"not measured: {reason}"))
    sys.exit()


def met(row: Row) -> bool:
    return row.target is None or statistics.median(row.ratios) >= row.target


# Time


def alternate(ours: Work, peer: Work, repeats: int, peer_repeats: int | None = None) -> tuple[list[float], list[float]]:
    """The seconds of ours and of the peer, which take turns; the peer runs at most `peer_repeats` times.

    Run ours once before, if it compiles.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        if turn < (repeats if peer_repeats is None else peer_repeats):
            taken[1].append(seconds(peer))
        taken[0].append(seconds(ours))
    return taken


def in_turn(sides: Sequence[Work], repeats: int) -> list[list[float]]:
    """The seconds of each of several sides, which take turns."""
    turns = [[seconds(side) for side in sides] for _ in range(repeats)]
    return [list(side) for side in zip(*turns, strict=True)]


def seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Turn by turn; turns in which only one side ran are left out."""
    return [p / o for o, p in zip(ours, peer, strict=False)]


def milliseconds(taken: Sequence[float], per: int = 1) -> str:
    return f"{spread([1e3 * one / per for one in taken])} ms"


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the largest where there is more than one value."""
    digits = 0 if min(values) >= 100 else 1 if min(values) >= 10 else 2
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} … {max(values):,.{digits}f})"


# Memory


def memory_growth(small: Work, work: Work) -> float:
    """By how much the peak of this process's memory lies above what it holds after a small example, in MiB.

    At least 1: less may have found place in what the example left behind.
    """
    small()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = memory("VmHWM")
    work()
    return max(memory("VmHWM") - before, 1)


def memory(entry: str) -> float:
    """An entry of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 1024


# The machine


def machine() -> str:
    return f"{processor()}, {len(os.sched_getaffinity(0))} cores"


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def matrix_rate() -> float:
    """GFLOP/s of a product of two float32 matrices of 2048 × 2048, with as many threads as torch uses at first."""
    matrix = torch.rand(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: matrix @ matrix) for _ in range(4)) / 1e9


@cache
def copy_rate() -> float:
    """GB/s read and written by a copy of 256 MiB, with as many threads as torch uses at first."""
    source, target = torch.rand(2, 1 << 26)
    return 2 * 4 * (1 << 26) / min(seconds(lambda: target.copy_(source)) for _ in range(4)) / 1e9


# Comparisons with dense N × N matrices


class Comparison(NamedTuple):
    """Two ways to compute one tensor; the baseline is run at most so often.

    `baseline_peak` stands for the baseline where its memory is measured, if that takes as much in less time.
    """

    ours: Callable[[], torch.Tensor]
    baseline: Callable[[], torch.Tensor]
    baseline_repeats: int = 5
    baseline_peak: Callable[[], torch.Tensor] | None = None
    target: float | None = None
    memory_target: float | None = None
    memory_limit: float | None = None
    """MB that ours may take."""
    floor: Callable[[float], str] | None = None
    """From the seconds of ours to what bounds it."""


# From the size of a map to comparisons by title.
Prepare = Callable[[Size], dict[str, Comparison]]


def main(
    description: str, prepare: Prepare, stride: int, tolerance: float, threads: int = 1, size: Size = (375, 500)
) -> None:
    """Run the comparisons of a script for images of `--size` at `stride`: two rows for each, time and peak memory."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = usually(size, (96, 128))
    parser.add_argument("--size", type=int, nargs=2, default=size, metavar=("HEIGHT", "WIDTH"), help="in pixels")
    parser.add_argument("--repeats", type=int, default=usually(5, 1), help="how often each side is timed")
    parser.add_argument("--threads", type=int, default=threads, help="of torch")
    parser.add_argument("--peak", nargs=2, metavar=("TITLE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    height, width = (-(-side // stride) for side in arguments.size)
    if arguments.peak:
        title, side = arguments.peak
        print(memory_growth(*(_measured_for_memory(prepare(s)[title], side) for s in ((12, 14), (height, width)))))
        return
    image = f"image {arguments.size[0]} × {arguments.size[1]}, stride {stride}"
    conditions = f"{image}: N = {height} · {width} = {height * width:,}; {arguments.threads} thread(s) of torch"
    table = Table(description.splitlines()[0], conditions)
    for title, comparison in prepare((height, width)).items():
        table.rows += compare(title, comparison, arguments.repeats, tolerance)
    publish(table)


def compare(title: str, comparison: Comparison, repeats: int, tolerance: float) -> list[Row]:
    results: dict[str, torch.Tensor] = {}

    def run(side: str) -> Work:
        return lambda: results.update({side: getattr(comparison, side)()})

    comparison.ours()  # compiles
    ours, peer = alternate(run("ours"), run("baseline"), repeats, comparison.baseline_repeats)
    difference = float((results["ours"] - results["baseline"]).abs().max())
    assert difference <= tolerance, f"{title}: the two sides differ by {difference:g}, more than {tolerance:g}"
    time_row = Row(
        title,
        milliseconds(ours),
        milliseconds(peer),
        ratios(ours, peer),
        comparison.target,
        f"largest difference {difference:.0e}",
        comparison.floor(statistics.median(ours)) if comparison.floor else "",
    )
    peaks = [peak_in_child(title, side) for side in ("ours", "baseline")]
    memory_row = Row(
        f"{title}, peak memory",
        *(f"{peak:.0f} MiB" for peak in peaks),
        [peaks[1] / peaks[0]],
        comparison.memory_target,
    )
    rows = [time_row, memory_row]
    if comparison.memory_limit is not None:
        limit = comparison.memory_limit * 1e6 / 2**20
        rows.append(Row(f"{title}, of the memory allowed", memory_row.ours, f"{limit:.0f} MiB", [limit / peaks[0]], 1))
    return rows


def _measured_for_memory(comparison: Comparison, side: str) -> Work:
    return comparison.baseline_peak or comparison.baseline if side == "baseline" else comparison.ours


def peak_in_child(title: str, side: str) -> float:
    """The memory growth of one side in MiB, run by the same script with the same arguments."""
    command = [sys.executable, *sys.argv, "--peak", title, side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
