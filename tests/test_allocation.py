"""What the allocator keeps, in a new process: its state belongs to the whole process."""

import platform
import subprocess
import sys

import pytest

ROUNDS, LARGE = 8, 64 << 20

MEASURE = f"""
import os, resource
from contextlib import nullcontext
import numpy as np
from weakseg.allocation import keeping_freed_memory

def faults(context):
    with context:
        np.ones({LARGE}, np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range({ROUNDS}):
            np.ones({LARGE}, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

outside, before = faults(nullcontext()), resident()
inside, after = faults(keeping_freed_memory()), resident()
print(outside, inside, after - before)
"""


def _measured(**environment: str) -> tuple[int, int, int]:
    """Page faults without and with it, and the memory held afterwards."""
    command = [sys.executable, "-c", MEASURE]
    kept = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    outside, inside, held = map(int, done.stdout.split())
    return outside, inside, held


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")


def test_blocks_are_used_again_and_given_back_at_the_end() -> None:
    outside, inside, held = _measured()
    assert inside < outside / 4
    assert held < LARGE / 4


def test_the_users_own_settings_of_the_allocator_hold() -> None:
    _, inside, _ = _measured(MALLOC_MMAP_THRESHOLD_="1048576", GLIBC_TUNABLES="")
    _, kept, _ = _measured()
    assert kept < inside / 4
