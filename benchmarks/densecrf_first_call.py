"""Dense CRF: how long does the very first call take, which compiles?

    python benchmarks/densecrf_first_call.py

Each time in a new process with an empty folder for compiled code, and then in another one that finds it there. What is
timed is the call of `dense_crf`, not the start of Python nor the import of torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

import measure

TITLE = "The first call of the dense CRF"
ALLOWED = 5.0  # seconds
LABELS = (2, 3, 21)
Taken = tuple[float, float]


def first_call(labels: int) -> float:
    import torch  # noqa: F401  not part of the time

    from weakseg.ops.densecrf import dense_crf

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    unary = rng.random((labels, 60, 80), np.float32)
    return measure.seconds(lambda: dense_crf(image, unary))


def in_new_processes(labels: int) -> Taken:
    """Seconds without compiled code on disk, and with it."""
    command = [sys.executable, __file__, "--labels", str(labels)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        cold, warm = (
            float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        )
    return cold, warm


def rows(labels: int, taken: Sequence[Taken]) -> list[measure.Row]:
    return [
        measure.Row(
            f"dense CRF, first call, L = {labels}, {state}",
            f"{measure.spread(times)} s",
            f"{ALLOWED:g} s allowed",
            [ALLOWED / time for time in times],
            target,
            floor="all of it is compiling",
        )
        for state, times, target in zip(
            ("nothing compiled yet", "compiled by an earlier process"), zip(*taken, strict=True), (1, None), strict=True
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the first call of the dense CRF in a new process.")
    parser.add_argument("--repeats", type=int, default=measure.usually(3, 1))
    parser.add_argument("--labels", type=int, help="only time this process's first call, and print it")
    arguments = parser.parse_args()
    if arguments.labels:
        print(first_call(arguments.labels))
        return
    table = measure.Table(TITLE, "image 60 × 80; new processes; torch imported before")
    for labels in measure.usually(LABELS, LABELS[:1]):
        table.rows += rows(labels, [in_new_processes(labels) for _ in range(arguments.repeats)])
    measure.publish(table)


if __name__ == "__main__":
    main()
