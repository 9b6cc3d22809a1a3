"""Downloads of files whose size nobody knows beforehand; of those with a known size: tests/data/test_fetch.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server import Server, serving
from weakseg import download as download_module
from weakseg.download import DownloadError, download

DATA = np.random.default_rng(0).bytes(50_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "RETRY_WAITS", (0.0,))
    monkeypatch.setenv("no_proxy", "*")
    with serving() as state:
        state.files["file"] = DATA
        yield state


def fetched(server: Server, path: Path) -> bytes:
    download([f"{server.url}/file"], path, None, lambda step, done, total: None)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path.read_bytes()


def test_what_the_server_announces_is_the_whole_file(server: Server, tmp_path: Path) -> None:
    server.cuts = [10_000, 20_000]
    assert fetched(server, tmp_path / "x") == DATA
    assert server.requests == [("file", None), ("file", "bytes=10000-"), ("file", "bytes=30000-")]


def test_a_server_that_announces_nothing_is_read_to_the_end(server: Server, tmp_path: Path) -> None:
    server.announce = False
    assert fetched(server, tmp_path / "x") == DATA


def test_a_later_call_goes_on_where_a_failed_one_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts, server.statuses = [10_000], [200, 500, 500]
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+: HTTP 500"):
        fetched(server, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert fetched(server, tmp_path / "x") == DATA
    assert server.requests[-1] == ("file", "bytes=10000-")


def test_the_bytes_done_and_in_all_are_told(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "CHUNK", 20_000)
    told: list[tuple[str, int, int]] = []
    download([f"{server.url}/file"], tmp_path / "x", None, lambda *progress: told.append(progress))
    assert told == [("Downloading x", done, 50_000) for done in (20_000, 40_000, 50_000)]
