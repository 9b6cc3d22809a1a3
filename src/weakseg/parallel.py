"""Sharing work over the processes of a `torchrun` job.

All functions also work in a plain, single process: it is rank 0 of 1.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

T = TypeVar("T")


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


def gather(value: T) -> list[T]:
    """Every process's value, in the order of ranks; small values only (they travel by pickle inside the job)."""
    if not _running():
        return [value]
    values: list[T] = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """`total / count` with the count of all processes, scaled so that averaging gradients gives the global mean.

    A data-parallel average of per-process means is wrong where processes hold different numbers of valid pixels.
    Nothing valid anywhere gives 0, not NaN. Inside of `dividing_by`, the count is that of all micro-batches, too.
    """
    known = _known_counts.get()
    if known is not None:
        everywhere, parts = next(known)
        return total * (world_size() * parts) / everywhere.clamp(min=1)
    everywhere = count.detach().clone()
    if _running():
        distributed.all_reduce(everywhere)
    noted = _noted_counts.get()
    if noted is not None:
        noted.append(everywhere)
    return total * world_size() / everywhere.clamp(min=1)


_noted_counts: ContextVar[list[Tensor] | None] = ContextVar("noted_counts", default=None)
_known_counts: ContextVar[Iterator[tuple[Tensor, int]] | None] = ContextVar("known_counts", default=None)


@contextmanager
def noting_counts() -> Iterator[list[Tensor]]:
    """The counts, over all processes, that `mean_over_ranks` is called with inside, in the order of the calls."""
    counts: list[Tensor] = []
    token = _noted_counts.set(counts)
    try:
        yield counts
    finally:
        _noted_counts.reset(token)


@contextmanager
def dividing_by(counts: Sequence[Tensor], parts: int) -> Iterator[None]:
    """Inside, `mean_over_ranks` divides by these counts, one for each of its calls, instead of those of its batch.

    They are those of all `parts` micro-batches of an update, whose gradients are averaged like those of processes.
    """
    token = _known_counts.set(iter([(count, parts) for count in counts]))
    try:
        yield
    finally:
        _known_counts.reset(token)
