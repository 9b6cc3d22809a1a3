"""Reading the `.npy` files of earlier projects that hold a pickled dict, without giving pickle any power.

A pickle is a program. This reader knows three words of its language, those by which NumPy stores an array, and
its own harmless stand-ins answer to them; any other word ends the reading.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.files import read_npy_header

MAX_PICKLE_BYTES = 1024**3


def read_pickled_dict(path: Path) -> dict[str | int, npt.NDArray[Any]]:
    """The arrays of a dict that `numpy.save` pickled: names or numbers → arrays of numbers.

    Raises `WeaksegError` for a file that is larger than 1 GiB, damaged, or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise WeaksegError(f"{path} is larger than {MAX_PICKLE_BYTES >> 30} GiB; refused.")
        file = io.BytesIO(path.read_bytes())
        read_npy_header(file)
        content = _ArrayUnpickler(file, encoding="latin1").load()
        [mapping] = content.value
        return {_key(key): _numbers(array) for key, array in mapping.items()}
    except WeaksegError:
        raise
    except Exception as error:  # a strange pickle can make almost any exception
        fault = error if isinstance(error, _Foreign) else "it is damaged, or of another kind"
        raise WeaksegError(
            f"{path} is not a NumPy file of a dict of arrays: {fault}. "
            "Nothing else is read from a pickle, because that could run any program."
        ) from error


class _Foreign(Exception):
    """The pickle holds what this reader does not know."""


def _key(key: object) -> str | int:
    if not isinstance(key, str | int):
        raise _Foreign("a key is neither a name nor a number")
    return key


def _numbers(array: object) -> npt.NDArray[Any]:
    if not isinstance(array, _Array) or not isinstance(array.value, np.ndarray):
        raise _Foreign("a value is no array of numbers")
    return array.value


class _DType:
    """Stands in for `numpy.dtype`: a code such as "f4" and, set later, a byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[biuf][1248]", self.code):
            raise _Foreign(f'an array has elements of kind "{self.code}"')
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """Stands in for `numpy.ndarray`: an array of numbers, or the list of elements of an array of objects."""

    value: npt.NDArray[Any] | list[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, data = state
        if isinstance(data, list):
            self.value = data
            return
        data = data.encode("latin1") if isinstance(data, str) else data
        self.value = np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if fortran_order else "C")


def _new_array(*_: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which protocol 2 stores bytes."""
    return text.encode("latin1")


# NumPy 2 moved its modules; files carry either name.
_WORDS = {("_codecs", "encode"): _encode, ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _DType} | {
    (f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")
}


def _refuse_buffer(*_: object) -> None:
    raise _Foreign("it holds a buffer that can be changed")


# The interpreter written in Python, since that in C allocates whatever size a broken file asks for. That in Python does
# so for one word, which NumPy does not write into files.
class _ArrayUnpickler(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: _refuse_buffer}  # type: ignore[attr-defined, unused-ignore]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _WORDS:
            raise _Foreign(f"it asks for {module}.{name}")
        return _WORDS[module, name]
