"""Sharing work over threads inside one process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

HELPERS = 4
"""Threads that read for a network, and threads that write for it, at most."""


def cpu_threads() -> int:
    """The CPU cores this process may use for itself: those granted, divided by the processes on this machine."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, granted // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def threaded(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """`map` over threads, in order, with a bounded number of results under way.

    Worth it for functions that release the interpreter lock: decoding, compressing, compiled kernels. `items` are taken
    in the calling thread. The first error ends the work; what has begun is finished.
    """
    threads = threads or cpu_threads()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def pipelined(
    read: Callable[[T], R],
    compute: Callable[[R], Iterable[S]],
    write: Callable[[S], None],
    items: Iterable[T],
) -> Iterator[None]:
    """Compute in this thread while others read what comes next and write what came before; yields once for each
    result that is written, in order.

    `compute` makes any number of results of each item. A few items and results at most are in memory. An error
    anywhere ends the work and is raised here; results that were computed before may be lost.
    """
    threads = min(HELPERS, cpu_threads())
    return threaded(write, (result for item in threaded(read, items, threads) for result in compute(item)), threads)
