"""Threads keep the order, hold little at a time and stop at the first error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.errors import WeaksegError
from weakseg.threads import HELPERS, cpu_threads, pipelined, threaded


@given(items=st.lists(st.integers(), max_size=30), threads=st.integers(1, 4))
def test_threads_keep_the_order(items: list[int], threads: int) -> None:
    assert list(threaded(lambda item: item * 2, items, threads)) == [item * 2 for item in items]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_a_few_results_are_under_way(threads: int) -> None:
    taken = []

    def items() -> object:
        for number in range(100):
            taken.append(number)
            yield number

    for place, result in enumerate(threaded(lambda number: number, items(), threads)):
        assert result == place
        assert len(taken) <= place + 2 * threads


def test_work_is_done_by_several_threads_at_once() -> None:
    meeting = threading.Barrier(2, timeout=30)
    assert len(list(threaded(lambda _: meeting.wait(), range(2), 2))) == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failing_item_stops_the_work_at_its_place(threads: int) -> None:
    started = []

    def work(item: int) -> int:
        started.append(item)
        return 12 // (4 - item)

    results = threaded(work, range(1000), threads)
    assert [next(results) for _ in range(4)] == [3, 4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(started) <= 5 + 2 * threads


def test_whoever_stops_listening_stops_the_work() -> None:
    started = []
    results = threaded(started.append, range(1000), 3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(started) <= 6


def test_a_pipeline_reads_computes_and_writes_in_order() -> None:
    written: list[str] = []

    def compute(text: str) -> Iterator[str]:
        yield from text

    assert list(pipelined(str, compute, written.append, [12, 3, 456])) == [None] * 6
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

    list(pipelined(there, here, there, range(20)))
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

    assert len(list(pipelined(reading, lambda item: [item], writing, range(200)))) == 200
    assert most <= 4 * HELPERS + 1


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
        list(pipelined(read, lambda item: [compute(item)], write, range(1000)))
    assert len(started) <= 5 + 2 * HELPERS


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = cpu_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu_threads() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert cpu_threads() == 1
