"""Small files: whole or not at all, never unpickled, and every fault told in a sentence."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, boolean_dtypes, floating_dtypes, integer_dtypes

from weakseg.errors import WeaksegError
from weakseg.files import (
    atomic_path,
    drop_partial_line,
    locked,
    read_json,
    read_npz,
    write_bytes,
    write_json,
    write_npz,
    write_text,
)

one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, WeaksegError])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(failure), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise failure
    assert path.read_text() == "old"
    assert left(tmp_path) == ["x.txt"]


def test_nobody_sees_a_file_before_it_is_complete(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "x").exists()
        assert temporary.parent == tmp_path, "another folder may be another disk, where renaming is copying"
    assert (tmp_path / "x").read_text() == "new"
    assert left(tmp_path) == ["x"]


def test_two_files_of_one_folder_do_not_meet(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "b") as second:
        first.write_text("a")
        second.write_text("b")
    assert (tmp_path / "a").read_text() + (tmp_path / "b").read_text() == "ab"


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "🦒" * 63])
def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert left(tmp_path) == [name]


def test_folders_are_made(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c", b"x")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path, number: int) -> None:
    with pytest.raises(WeaksegError) as caught, atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == (
        f"The disk is full: {tmp_path / 'x'} could not be written and was left as it was. "
        "Free some space and run the same command again; finished work is kept."
    )
    assert left(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for path in (tmp_path / "x" / "y", tmp_path / "x" / "y" / "z"):
        with pytest.raises(WeaksegError, match=f"{path} could not be written: (Not a directory|File exists)"):
            write_text(path, "z")


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(WeaksegError, match="x could not be written: Is a directory"):
        write_text(tmp_path / "x", "z")
    assert left(tmp_path) == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WeaksegError, match="x could not be written: Permission denied"):
        write_text(tmp_path / "x", "z")


# Locks

HOLD = """
import sys
from pathlib import Path
from weakseg.files import locked
with locked(Path(sys.argv[1]), "run", wait=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for _ in range(2):  # whoever is refused leaves the name where it is
            refused = pytest.raises(WeaksegError, match=rf"run is at work in {lock.parent} .*process {holder.pid} ")
            with refused, locked(lock, "run", wait=False):
                pytest.fail("two hold the lock")
        holder.kill()
    with locked(lock, "run", wait=False):
        assert f"process {os.getpid()} " in lock.read_text()


def test_those_who_wait_come_in_one_after_the_other(tmp_path: Path) -> None:
    together = threading.Barrier(4)
    inside: list[int] = []

    def work(number: int) -> list[int]:
        together.wait()
        with locked(tmp_path / "lock", "download", wait=True):
            inside.append(number)
            seen = list(inside)
            os.sched_yield()
            inside.remove(number)
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[0], [1], [2], [3]]


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    named = pytest.raises(WeaksegError, match="file cannot be used as a run folder")
    with named, locked(tmp_path / "file" / "run.lock", "run", wait=True):
        pytest.fail("a file is no folder")


# JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@one_folder
@given(value=json_values)
def test_json_comes_back(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "a": 1,\n  "b" 2\n}', "x.json is not valid JSON: line 3, column 7: Expecting ':' delimiter."),
        (b"", "x.json is not valid JSON: line 1, column 1: Expecting value."),
        (b'{"a": "\xff"}', "x.json is not UTF-8 text (byte 7)."),
        (b"[" * 100_000, "x.json is nested too deeply to be a file of ours."),
        (b"1" * 5000, "x.json holds a number of too many digits"),
    ],
)
def test_broken_json_is_told_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(WeaksegError) as caught:
        read_json(tmp_path / "x.json")
    assert f"{tmp_path}/{message}" in str(caught.value)


def test_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"x\.json does not exist\."):
        read_json(tmp_path / "x.json")
    with pytest.raises(WeaksegError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_json_of_an_absurd_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(3 * 1024**3)  # a hole, which takes no room
    with pytest.raises(WeaksegError, match=r"x\.json is larger than 2 GiB"):
        read_json(tmp_path / "x.json")


# Arrays

numeric = boolean_dtypes() | integer_dtypes(endianness="<") | floating_dtypes(endianness="<")


@one_folder
@given(array=numeric.flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0, max_side=4))))
def test_arrays_come_back(tmp_path: Path, array: np.ndarray) -> None:
    write_npz(tmp_path / "x.npz", {"first": array, "zweites": array[..., None]})
    found = read_npz(tmp_path / "x.npz")
    assert sorted(found) == ["first", "zweites"]
    assert found["first"].dtype == array.dtype
    np.testing.assert_array_equal(found["first"], array)


def test_the_bytes_of_arrays_depend_on_the_arrays_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_npz(tmp_path / name, {"x": np.arange(5)})
        os.utime(tmp_path / name, (0, 0))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Boom:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("executed"),))


def test_pickles_are_neither_written_nor_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Boom()], object)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_npz(tmp_path / "x.npz", {"x": objects})
    assert left(tmp_path) == []
    np.savez(tmp_path / "x.npz", x=objects)
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Boom()))
    for name in ("x.npz", "y.npz"):
        with pytest.raises(WeaksegError, match=rf"{name} is not a readable array file .* Delete it and run again"):
            read_npz(tmp_path / name)
    assert left(tmp_path) == ["x.npz", "y.npz"]


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weakseg.files.MAX_ARRAY_BYTES", 2 * 1024**2)
    write_npz(tmp_path / "x.npz", {"x": np.zeros(3 * 1024**2, np.uint8)})
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    with pytest.raises(WeaksegError, match=r"x\.npz unpacks to more than .* refused"):
        read_npz(tmp_path / "x.npz")


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"123")
    with pytest.raises(WeaksegError, match=r"x\.npz is not a readable array file"):
        read_npz(tmp_path / "x.npz")


def test_an_archive_of_other_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("letter.txt", "dear reader")
    with pytest.raises(WeaksegError, match="is not a readable array file"):
        read_npz(tmp_path / "x.npz")


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"x\.npz does not exist\."):
        read_npz(tmp_path / "x.npz")


@one_folder
@given(data=st.data())
def test_damage_of_any_kind_is_told_in_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    memory = io.BytesIO()
    np.savez_compressed(memory, x=np.arange(40), y=np.eye(3))
    content = bytearray(memory.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npz"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_npz(path)
    except WeaksegError as error:
        assert str(path) in str(error)


def test_text_is_utf8(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"Bär": "🐻"})
    assert "Bär" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"Bär": "🐻"}


@pytest.mark.parametrize(("text", "kept"), [("a\nb\n", "a\nb\n"), ("a\nb", "a\n"), ("b", ""), ("", "")])
def test_a_broken_last_line_is_dropped(text: str, kept: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    drop_partial_line(path)
    assert path.read_text() == kept


class Garbage:
    """A cycle whose collection lets other threads go on, and leaves the next one."""

    left = 20_000

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        os.sched_yield()
        if Garbage.left > 0:
            Garbage.left -= 1
            Garbage()


def test_threads_read_arrays_while_garbage_is_collected(tmp_path: Path) -> None:
    """CPython's parser of headers fails in one thread if a collection in it lets another thread parse."""
    write_npz(tmp_path / "x.npz", {"x": np.arange(3)})

    def read(_: int) -> None:
        assert read_npz(tmp_path / "x.npz")["x"].tolist() == [0, 1, 2]

    thresholds = gc.get_threshold()
    gc.set_threshold(5, 1000, 1000)
    try:
        with ThreadPoolExecutor(8) as pool:
            Garbage()
            list(pool.map(read, range(2000)))
    finally:
        Garbage.left = 0
        gc.set_threshold(*thresholds)
