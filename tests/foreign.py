"""Files of MXNet and Caffe, written by hand for the tests of their readers."""

from __future__ import annotations

import struct

import numpy as np

from weakseg.models.mxnet import DTYPES

Arrays = dict[str, np.ndarray]


def mxnet_bytes(arrays: Arrays, legacy: bool = False) -> bytes:
    data = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        head = struct.pack("<I", array.ndim) if legacy else struct.pack("<IiI", 0xF993FAC9, 0, array.ndim)
        sizes = struct.pack(f"<{array.ndim}{'I' if legacy else 'q'}", *array.shape)
        number = [np.dtype(dtype) for dtype in DTYPES].index(array.dtype)
        data += head + sizes + struct.pack("<iii", 1, 0, number) + array.tobytes()
    data += struct.pack("<Q", len(arrays))
    return data + b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in arrays)


def varint(number: int) -> bytes:
    data = b""
    while number >= 0x80:
        data, number = data + bytes([number & 0x7F | 0x80]), number >> 7
    return data + bytes([number])


def message(number: int, content: bytes) -> bytes:
    """A field of bytes in Protocol Buffers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, old: bool = False) -> bytes:
    data = message(5, array.astype("<f4").tobytes())
    if not old:
        return message(7, message(1, b"".join(varint(side) for side in array.shape))) + data
    sides = (1,) * (4 - array.ndim) + array.shape
    return b"".join(varint(field << 3) + varint(side) for field, side in enumerate(sides, start=1)) + data


def caffe_bytes(arrays: Arrays, old: bool = False) -> bytes:
    """Arrays called "layer/0", "layer/1", …, in the newer or the older generation of the format."""
    layer, name, blobs = (2, 4, 6) if old else (100, 1, 7)
    net = message(1, b"a net's name")
    for title in dict.fromkeys(key.split("/")[0] for key in arrays):
        parts = [blob(array, old) for key, array in arrays.items() if key.split("/")[0] == title]
        net += message(layer, message(name, title.encode()) + b"".join(message(blobs, part) for part in parts))
    return net + message(layer, message(name, b"relu1"))
