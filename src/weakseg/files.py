"""Reading and writing small files so that a killed run leaves no half file and a strange file runs no code."""

from __future__ import annotations

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError

TEMPORARY_SUFFIX = ".writing"
MAX_TEXT_BYTES = 2 * 1024**3
MAX_ARRAY_BYTES = 4 * 1024**3
_header_lock = threading.Lock()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it takes `path`'s name, on any failure it is removed.

    Parent folders are made. A full disk or a missing permission becomes a `WeaksegError` that names the file.
    """
    # Of a fixed length: what a long name would have to be cut to could be the name of another file's temporary.
    name = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    temporary = path.with_name(f".{name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, work: str, *, wait: bool) -> Iterator[None]:
    """Let one process at a time do some `work` ("run") in the folder of the lock file `path`.

    The others wait, or get a `WeaksegError` that names the process at work, as does whoever cannot use the folder.
    The folder is made. The lock dies with its process.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path).acquire(blocking=wait)
    except Timeout:
        owner = path.read_text(encoding="utf-8")
        raise WeaksegError(f"Another {work} is at work in {path.parent} ({owner}). Wait for it or stop it.") from None
    except OSError as error:
        raise WeaksegError(f"{path.parent} cannot be used as a {work} folder: {error.strerror or error}.") from None
    with held:
        owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}"
        try:
            path.write_text(owner, encoding="utf-8")  # in place: another file would not be locked
        except OSError as error:
            raise _write_error(path, error) from error
        yield


def _write_error(path: Path, error: OSError) -> WeaksegError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WeaksegError(
            f"The disk is full: {path} could not be written and was left as it was. "
            "Free some space and run the same command again; finished work is kept."
        )
    return WeaksegError(f"{path} could not be written: {error.strerror or error}.")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file atomically. Bytes of a file name that are not UTF-8 are written as `\\udcXX`, which
    JSON reads as what they were."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically; NaN is refused (the format has none)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV atomically; None is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_text(path: Path, fallback: str | None = None) -> tuple[str, bool]:
    """The text of a small file, and whether it had to be decoded with `fallback`.

    It is UTF-8, or UTF-16 with a byte-order mark, as programs on Windows write them. Raises `WeaksegError` where it is
    neither and `fallback` (the name of an encoding) does not fit.
    """
    data = _read_bytes(path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", *([fallback] if fallback else [])]
    for encoding in encodings:
        with suppress(UnicodeError):
            return data.decode(encoding), encoding == fallback
    place = _first_undecodable(data, encodings[0])
    raise WeaksegError(f"{path} is not UTF-8 text (byte {place}). Save it again as UTF-8.")


def _first_undecodable(data: bytes, encoding: str) -> int:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise WeaksegError(f"{path} is larger than {MAX_TEXT_BYTES >> 30} GiB; this is no file of ours.")
        return path.read_bytes()
    except FileNotFoundError:
        raise WeaksegError(f"{path} does not exist.") from None
    except OSError as error:
        raise WeaksegError(f"{path} cannot be read: {error.strerror}.") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises `WeaksegError` naming file, line and column where it is not JSON.

    A key that stands twice in an object with different values is refused, since one of them would be lost.
    """
    text, _ = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_without_contradiction)
    except WeaksegError as error:
        raise WeaksegError(f"{path}: {error}") from None
    except RecursionError:
        raise WeaksegError(f"{path} is nested too deeply to be a file of ours.") from None
    except json.JSONDecodeError as error:
        raise WeaksegError(
            f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    except ValueError:
        raise WeaksegError(f"{path} holds a number of too many digits to be read.") from None


def _without_contradiction(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        for key, value in pairs:
            if content[key] != value:
                raise WeaksegError(f'the key "{key}" stands twice in one object. Merge its two values into one.')
    return content


def drop_partial_line(path: Path) -> None:
    """Cut off what follows the last end of line of a log, where a killed process or a full disk broke a record."""
    if path.is_file():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log with one JSON object per line, none where it is missing; a last line that is still being
    written is left out. Raises `WeaksegError` for a damaged log."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:  # no JSON, or no UTF-8
            record = None
        if not isinstance(record, dict):
            raise WeaksegError(f"{path} is damaged: {line[:60]!r} is no record. Delete it to go without.")
        records.append(record)
    return records


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays atomically, compressed. The bytes depend on the arrays alone."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an `.npz` file; never unpickles, refuses archives that unpack to more than 4 GiB."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MAX_ARRAY_BYTES:
                raise WeaksegError(f"{path} unpacks to more than {MAX_ARRAY_BYTES >> 30} GiB; refused.")
            return {name.removesuffix(".npy"): _read_member(archive, name) for name in archive.namelist()}
    except WeaksegError:
        raise
    except FileNotFoundError:
        raise WeaksegError(f"{path} does not exist.") from None
    except Exception as error:  # damage shows as almost any exception: of zipfile, zlib, the array's header, …
        raise WeaksegError(
            f"{path} is not a readable array file but damaged or of another kind. Delete it and run again."
        ) from error


def _read_member(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(name) as file:
        shape, fortran, dtype = read_npy_header(file)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects")
        data = bytearray()  # grows with the file, whatever size the header claims
        while block := file.read(1 << 20):
            data += block
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C")


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of the `.npy` array whose data follow in `file`; safe in threads.

    NumPy parses the header with `ast.literal_eval`, which counts its depth in one place for all threads: CPython 3.11
    raises a `SystemError` there if a garbage collection lets another thread parse in between.
    """
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    with _header_lock:
        return header[version](file)
