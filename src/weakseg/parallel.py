"""Sharing work over the processes of a `torchrun` job.

All functions also work in a plain, single process: it is rank 0 of 1.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

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


def sum_tensor(tensor: Tensor) -> Tensor:
    """The element-wise sum of every process's tensor, in place; all processes must call it with the same shape."""
    if _running():
        distributed.all_reduce(tensor)
    return tensor


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows (n, …) of all processes in the order of ranks, where process r has counts[r] of them.

    Gradients go back to the process whose rows they are of, as the sum over all processes. All processes must call it,
    and its backward pass, in the same order.
    """
    return _GatheredRows.apply(rows, tuple(counts)) if _running() else rows


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        travelling = rows.to(torch.uint8) if rows.dtype == torch.bool else rows  # not every backend knows truth values
        padded = travelling.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = travelling
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return sum_tensor(upstream.clone()).split(list(ctx.counts))[rank()], None


def gather(value: T) -> list[T]:
    """Every process's value, in the order of ranks; small values only (they travel by pickle inside the job)."""
    if not _running():
        return [value]
    values: list[T] = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values
