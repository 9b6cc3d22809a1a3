"""Reading the weights in Caffe's `.caffemodel` files, without Caffe.

Such a file is one message in the wire format of Protocol Buffers: fields, each a number and a value. Only the few
fields that hold weights are looked at. No length in the file is believed before it is compared with what is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weakseg.errors import WeaksegError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


class _Layers(NamedTuple):
    """The numbers of the fields of a generation of the format: a layer in the net, its name and its blobs."""

    layer: int
    name: int
    blobs: int


GENERATIONS = (_Layers(layer=100, name=1, blobs=7), _Layers(layer=2, name=4, blobs=6))
BLOB_DATA, BLOB_SHAPE, SHAPE_DIMENSION = 5, 7, 1
BLOB_LEGACY_SHAPE = (1, 2, 3, 4)


class _Damaged(Exception):
    """What is wrong, as a part of a sentence."""


def read_caffe(path: Path) -> dict[str, Tensor]:
    """The blobs of all layers as float32 tensors: blob k of a layer is called "<layer>/<k>".

    Blobs of the old kind have four dimensions, the bias of C channels is (1, 1, 1, C). Raises `WeaksegError` for any
    other file.
    """
    try:
        state: dict[str, Tensor] = {}
        for name, blobs in _layers(memoryview(path.read_bytes())):
            for index, blob in enumerate(blobs):
                key = f"{name}/{index}"
                if key in state:
                    raise _Damaged(f'two of its layers are called "{name}"')
                state[key] = _tensor(blob, key)
        if not state:
            raise _Damaged("it holds no weights")
        return state
    except _Damaged as fault:
        raise WeaksegError(f"{path} is not a readable .caffemodel file: {fault}.") from None


def _layers(net: memoryview) -> Iterator[tuple[str, list[memoryview]]]:
    """The layers that have blobs."""
    for number, value in _fields(net):
        for generation in GENERATIONS:
            if number != generation.layer or not isinstance(value, memoryview):
                continue
            name, blobs = "", []
            for field, content in _fields(value):
                if isinstance(content, memoryview):
                    if field == generation.name:
                        name = bytes(content).decode(errors="replace")
                    elif field == generation.blobs:
                        blobs.append(content)
            if blobs:
                yield name, blobs


def _tensor(blob: memoryview, name: str) -> Tensor:
    """A message of the kind BlobProto. Repeated numbers are packed into one field or have a field each."""
    parts: list[npt.NDArray[np.float32]] = []
    shape: list[int] | None = None
    legacy = dict.fromkeys(BLOB_LEGACY_SHAPE, 1)
    is_legacy = False
    for number, value in _fields(blob):
        if number == BLOB_DATA and isinstance(value, memoryview) and len(value) % 4 == 0:
            parts.append(np.frombuffer(value, "<f4"))
        elif number == BLOB_SHAPE and isinstance(value, memoryview):
            shape = _shape(value)
        elif number in legacy and isinstance(value, int):
            legacy[number], is_legacy = value, True
    if not parts:
        raise _Damaged(f"{name} has no values")
    data = np.concatenate(parts)
    if shape is None:
        shape = list(legacy.values()) if is_legacy else [len(data)]
    if math.prod(shape) != len(data):
        raise _Damaged(f"{name} has {len(data)} values, which is not the shape {tuple(shape)}")
    return torch.from_numpy(data.reshape(shape).copy())


def _shape(message: memoryview) -> list[int]:
    dimensions: list[int] = []
    for number, value in _fields(message):
        if number == SHAPE_DIMENSION:
            if isinstance(value, int):
                dimensions.append(value)
                continue
            position = 0
            while position < len(value):
                dimension, position = _varint(value, position)
                dimensions.append(dimension)
    return dimensions


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: number and value, an integer for the kind VARINT and bytes for the others."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == BYTES:
            length, position = _varint(message, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise _Damaged(f"it has a field of the unknown kind {kind}")
        if number == 0 or length > len(message) - position:
            raise _Damaged("a field of it is longer than what it is in")
        yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    number = 0
    for shift, byte in enumerate(message[position : position + MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, position + shift + 1
    raise _Damaged("a number in it does not end")
