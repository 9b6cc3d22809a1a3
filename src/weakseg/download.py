"""Downloading a file: a broken download is resumed, and where one address fails, the next is asked."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from weakseg.errors import WeaksegError

Progress = Callable[[str, int, int], object]
"""Called often with the step ("Downloading x.tar"), the bytes done and the bytes in all."""

TIMEOUT_SECONDS = 60.0
RETRY_WAITS = (1.0, 4.0, 16.0)
"""Seconds before each further attempt at an address. An attempt that brought something starts the count anew."""
CHUNK = 1 << 20


class DownloadError(Exception):
    """No address gave the file; what each of them said."""


class _InterruptedError(Exception):
    """The network failed in a way that may pass."""


class _RefusedError(Exception):
    """This address will not give us the file."""


def part_of(path: Path) -> Path:
    """Where the bytes of an unfinished download are kept."""
    return path.with_name(f"{path.name}.part")


def bytes_in(path: Path) -> int:
    """The size of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def download(urls: Sequence[str], path: Path, size: int | None, progress: Progress) -> None:
    """Download to `path` from the first address that has the file, in a folder that exists. What it holds is for the
    caller to check.

    `size` in bytes, if it is known, decides what is a whole file and which address has another one. What arrives of a
    download that fails is kept, and the next call goes on there.

    Raises `DownloadError` where every address fails, `WeaksegError` for an address that is not of the web and where
    the file cannot be written.
    """
    failures = []
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise WeaksegError(f'"{url}" is no web address: mirrors begin with http:// or https://.')
        try:
            _download_from(url, path, size, progress)
        except (_InterruptedError, _RefusedError) as error:
            failures.append(f"{urlsplit(url).netloc}: {error}")
        else:
            part_of(path).replace(path)
            return
    raise DownloadError("; ".join(failures))


def _download_from(url: str, path: Path, size: int | None, progress: Progress) -> None:
    """Bring all of the file to its part, asking again after a broken connection."""
    part, waits = part_of(path), list(RETRY_WAITS)
    while bytes_in(part) != size:
        before = bytes_in(part)
        try:
            return _receive(url, path, size, progress)
        except _InterruptedError:
            if bytes_in(part) > before:
                waits = list(RETRY_WAITS)
            if not waits:
                raise
            time.sleep(waits.pop(0))
    return None


def _receive(url: str, path: Path, size: int | None, progress: Progress) -> None:
    """One request: append to the part what it lacks, or write all of it where the server cannot resume."""
    part = part_of(path)
    with _request(url, part) as response:
        start, announced = _extent(response)
        if start not in (0, bytes_in(part)):
            raise _RefusedError(f"it sends bytes from {start} on instead of from {bytes_in(part)} on")
        if size is not None and announced not in (None, size):
            raise _RefusedError(f"its file has {announced} bytes instead of {size}")
        total = announced if size is None else size
        done = start
        try:
            with part.open("ab" if start else "wb") as file:
                for chunk in _chunks(response):
                    file.write(chunk)
                    done += len(chunk)
                    if total is not None and done > total:
                        raise _RefusedError(f"it sends more than {total} bytes")
                    progress(f"Downloading {path.name}", done, total or done)
        except OSError as error:
            raise WeaksegError(
                f"{part} could not be written ({error.strerror or error}). Free some space or choose another folder, "
                "and run the same command again; what arrived is kept."
            ) from None
    if total is not None and done < total:
        raise _InterruptedError(f"the connection broke after {done} of {total} bytes")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from error


def _request(url: str, part: Path) -> HTTPResponse:
    """Ask for the bytes that come after those in `part`."""
    headers = {"User-Agent": "weakseg", "Accept-Encoding": "identity"}
    if bytes_in(part):
        headers["Range"] = f"bytes={bytes_in(part)}-"
    try:
        return cast(HTTPResponse, urlopen(Request(url, headers=headers), timeout=TIMEOUT_SECONDS))
    except HTTPError as error:
        if error.code == 416:  # the file has no bytes after those in `part`, so `part` is of another file
            part.unlink(missing_ok=True)
        may_pass = error.code in (408, 416, 429) or error.code >= 500
        raise (_InterruptedError if may_pass else _RefusedError)(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        # A name that nobody knows will not be known in a few seconds: most likely there is no connection at all.
        failure = _RefusedError if isinstance(reason, socket.gaierror) else _InterruptedError
        raise failure(getattr(reason, "strerror", None) or str(reason)) from error


def _extent(response: HTTPResponse) -> tuple[int, int | None]:
    """The first byte that a response brings and the size of the whole file (`None` if the server does not say)."""
    if response.status == 206:
        extent, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = extent.partition("-")[0]
        if not first.isdecimal():
            raise _RefusedError("it does not say which part of the file it sends")
        return int(first), int(total) if total.isdecimal() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None
