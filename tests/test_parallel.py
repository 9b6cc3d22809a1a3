"""Sharing work in one process: it is rank 0 of 1, and threads keep the order. Several processes: see cli/."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from weakseg import parallel
from weakseg.errors import WeaksegError


@given(items=st.lists(st.integers(), max_size=30), threads=st.integers(1, 4))
def test_threads_keep_the_order(items: list[int], threads: int) -> None:
    assert list(parallel.threaded(lambda item: item * 2, items, threads)) == [item * 2 for item in items]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_a_few_results_are_under_way(threads: int) -> None:
    taken = []

    def items() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    for place, result in enumerate(parallel.threaded(lambda number: number, items(), threads)):
        assert result == place
        assert len(taken) <= place + 2 * threads


def test_work_is_done_by_several_threads_at_once() -> None:
    meeting = threading.Barrier(2, timeout=30)
    assert len(list(parallel.threaded(lambda _: meeting.wait(), range(2), 2))) == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failing_item_stops_the_work_at_its_place(threads: int) -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        return 12 // (4 - item)

    results = parallel.threaded(work, range(1000), threads)
    assert [next(results) for _ in range(4)] == [3, 4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(started) <= 5 + 2 * threads


def test_whoever_stops_listening_stops_the_work() -> None:
    started = []
    results = parallel.threaded(started.append, range(1000), 3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(started) <= 6


def test_a_pipeline_reads_computes_and_writes_in_order() -> None:
    written: list[str] = []

    def compute(text: str) -> Iterator[str]:
        yield from text

    assert list(parallel.pipelined(str, compute, written.append, [12, 3, 456])) == [None] * 6
    assert written == list("123456")


def test_a_pipeline_computes_in_the_calling_thread_and_writes_in_others() -> None:
    computing: set[int] = set()
    others: set[int] = set()

    def here(item: int) -> list[int]:
        computing.add(threading.get_ident())
        return [item]

    def there(item: int) -> int:
        others.add(threading.get_ident())
        return item

    list(parallel.pipelined(there, here, there, range(20)))
    assert computing == {threading.get_ident()}
    assert threading.get_ident() not in others


def test_a_pipeline_holds_a_few_results_at_most() -> None:
    """Counted in whatever order the threads come: what is read and not yet written."""
    lock = threading.Lock()
    read = written = most = 0

    def reading(item: int) -> int:
        nonlocal read, most
        with lock:
            read += 1
            most = max(most, read - written)
        return item

    def writing(item: int) -> None:
        nonlocal written
        with lock:
            written += 1

    assert len(list(parallel.pipelined(reading, lambda item: [item], writing, range(200)))) == 200
    assert most <= 4 * parallel.HELPERS + 1


@pytest.mark.parametrize("place", ["read", "compute", "write"])
def test_an_error_anywhere_stops_a_pipeline(place: str) -> None:
    started: list[int] = []

    def failing(name: str) -> Callable[[int], int]:
        def work(item: int) -> int:
            if name == place and item == 5:
                raise WeaksegError(f"{name} of {item}")
            if name == "write":
                started.append(item)
            return item

        return work

    read, compute, write = map(failing, ("read", "compute", "write"))
    with pytest.raises(WeaksegError, match=f"{place} of 5"):
        list(parallel.pipelined(read, lambda item: [compute(item)], write, range(1000)))
    assert len(started) <= 5 + 2 * parallel.HELPERS


def test_one_process_does_everything() -> None:
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.gather({"a": 1}) == [{"a": 1}]
    counts = np.arange(4)
    np.testing.assert_array_equal(parallel.sum_over_ranks(counts), counts)
    parallel.barrier()


def test_the_mean_of_nothing_is_nothing() -> None:
    assert parallel.mean_over_ranks(torch.tensor(6.0), torch.tensor(3)) == 2
    assert parallel.mean_over_ranks(torch.tensor(0.0), torch.tensor(0)) == 0


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = parallel.cpu_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert parallel.cpu_threads() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert parallel.cpu_threads() == 1


@pytest.fixture
def job() -> Iterator[None]:
    """A job of one process, which goes the ways of several."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("job")
def test_a_job_of_one_is_as_one_process() -> None:
    test_one_process_does_everything()
    test_the_mean_of_nothing_is_nothing()


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
