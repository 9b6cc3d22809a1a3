"""Sharing work in one process: it is rank 0 of 1. Several processes: see cli/."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import distributed

from weakseg import parallel


def test_one_process_does_everything() -> None:
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.gather({"a": 1}) == [{"a": 1}]
    counts = np.arange(4)
    np.testing.assert_array_equal(parallel.sum_over_ranks(counts), counts)
    assert parallel.sum_tensor(torch.arange(4)).tolist() == [0, 1, 2, 3]
    parallel.barrier()


@pytest.fixture
def job() -> Iterator[None]:
    """A job of one process, which goes the ways of several."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("job")
def test_a_job_of_one_is_as_one_process() -> None:
    test_one_process_does_everything()


@pytest.mark.usefixtures("job")
def test_a_sum_is_not_made_in_its_input() -> None:
    counts = np.arange(4)
    assert not np.shares_memory(parallel.sum_over_ranks(counts), counts)


AT_EXIT = """
import atexit, sys
from torch import distributed
from weakseg import parallel

atexit.register(lambda: print("still joined" if distributed.is_initialized() else "left"))  # called last
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
for work in sys.argv[1:]:
    with parallel.leaving_at_exit():
        print(parallel.gather(work))
        if work == "fails":
            sys.exit("a mistake")
"""


@pytest.mark.parametrize(
    ("works", "end"), [(["one"], "left"), (["one", "two"], "left"), (["one", "fails"], "still joined")]
)
def test_a_process_that_has_done_its_work_leaves_the_others_before_its_interpreter_ends(
    works: list[str], end: str
) -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT, *works], capture_output=True, text=True)
    assert done.stdout.splitlines() == [*(f"['{work}']" for work in works), end]
