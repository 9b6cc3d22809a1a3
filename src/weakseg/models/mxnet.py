"""Reading MXNet's `.params` files, without MXNet.

Such a file is a list of arrays and a list of their names, little-endian throughout. Everything is checked against the
length of the file before memory is taken for it.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from weakseg.errors import WeaksegError

LIST_MAGIC = 0x112
V1_MAGIC = 0xF993FAC8
V2_MAGIC = 0xF993FAC9
DENSE = 0
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
MAX_DIMENSIONS = 8


class _Damaged(Exception):
    """What is wrong, as a part of a sentence."""


def read_mxnet(path: Path) -> dict[str, Tensor]:
    """The named arrays of a `.params` file, such as "arg:conv1a_weight" and "aux:bn7_moving_mean", as tensors of their
    own types. Raises `WeaksegError` for any other file."""
    try:
        with path.open("rb") as file:
            return _read_list(_Reader(file, path.stat().st_size))
    except _Damaged as fault:
        raise WeaksegError(f"{path} is not a readable .params file of MXNet: {fault}.") from None


class _Reader:
    """A file of known length that is never read beyond."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise _Damaged(f"it ends within {what}")
        self.left -= count
        return self.file.read(count)

    def numbers(self, form: str, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))

    def number(self, form: str, what: str) -> int:
        (number,) = self.numbers(form, what)
        return number


def _read_list(reader: _Reader) -> dict[str, Tensor]:
    magic, reserved = reader.numbers("QQ", "its header")
    if (magic, reserved) != (LIST_MAGIC, 0):
        raise _Damaged("it does not begin like one")
    count = reader.number("Q", "its header")
    arrays: list[Tensor] = []
    while len(arrays) < count:
        arrays.append(_read_array(reader, f"array {len(arrays) + 1} of {count}"))
    if reader.number("Q", "the number of names") != count:
        raise _Damaged(f"its {count} arrays have not as many names")
    state: dict[str, Tensor] = {}
    for array in arrays:
        name = reader.take(reader.number("Q", "a name"), "a name").decode(errors="replace")
        if name in state:
            raise _Damaged(f'two of its arrays are called "{name}"')
        state[name] = array
    if reader.left:
        raise _Damaged(f"{reader.left} bytes follow its end")
    return state


def _read_array(reader: _Reader, what: str) -> Tensor:
    first = reader.number("I", what)
    if first == V2_MAGIC and (storage := reader.number("i", what)) != DENSE:
        raise _Damaged(f"{what} is sparse (storage type {storage})")
    # Files of 2016 and 2017 have no magic number: they begin with the number of dimensions, and sizes have 32 bits.
    legacy = first not in (V1_MAGIC, V2_MAGIC)
    dimensions = first if legacy else reader.number("I", what)
    if dimensions > MAX_DIMENSIONS:
        raise _Damaged(f"{what} would have {dimensions} dimensions")
    shape = reader.numbers(f"{dimensions}{'I' if legacy else 'q'}", what)
    if dimensions == 0:
        return torch.empty(0)
    if min(shape) < 1:
        raise _Damaged(f"{what} has the impossible shape {shape}")
    _, _, type_number = reader.numbers("iii", what)  # before it, the device it was saved from
    if not 0 <= type_number < len(DTYPES):
        raise _Damaged(f"{what} is of the unknown type {type_number}")
    dtype = np.dtype(DTYPES[type_number])
    data = reader.take(math.prod(shape) * dtype.itemsize, what)
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())
