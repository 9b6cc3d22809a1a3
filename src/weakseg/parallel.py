"""Sharing work: over the ranks of a `torchrun` job, and over threads inside one process.

All functions also work in a plain, single process: it is rank 0 of 1.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")

HELPERS = 4
"""Threads that read for a network, and threads that write for it, at most."""


def rank() -> int:
    """The number of this process among all of the job, 0 … world_size() - 1."""
    return distributed.get_rank() if _running() else 0


def world_size() -> int:
    """How many processes work on this job."""
    return distributed.get_world_size() if _running() else 1


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def barrier() -> None:
    """Wait until every process has come here."""
    if _running():
        distributed.barrier()


@contextmanager
def leaving_at_exit() -> Iterator[None]:
    """A process that comes out of this without an error leaves the others when its program ends.

    The backend's threads let go of the last tensors a moment after the work with them is done. In an interpreter that
    is being taken down this aborts the process, so they must have ended before. After an error, others may never come
    to what was begun together; nobody waits for them.
    """
    atexit.unregister(_leave)
    yield
    atexit.register(_leave)


def _leave() -> None:
    if _running():
        gc.collect()  # networks that were trained together, which hold the backend
        distributed.destroy_process_group()


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the work: every world_size()-th item, beginning at its rank."""
    return items[rank() :: world_size()]


def sum_over_ranks(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The element-wise sum of every process's counts; all processes must call it with the same shape."""
    if not _running():
        return array
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(array, device=device)  # a copy: the sum is made in place
    distributed.all_reduce(total)
    return total.cpu().numpy()


def sum_tensor(tensor: Tensor) -> Tensor:
    """The element-wise sum of every process's tensor, in place; all processes must call it with the same shape."""
    if _running():
        distributed.all_reduce(tensor)
    return tensor


def gather(value: T) -> list[T]:
    """Every process's value, in the order of ranks; small values only (they travel by pickle inside the job)."""
    if not _running():
        return [value]
    values: list[T] = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values


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
