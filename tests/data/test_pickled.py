from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from weakseg.data.pickled import read_pickled_dict
from weakseg.errors import WeaksegError

HEADER = b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(79) + b"\n"


def save(path: Path, content: object, protocol: int = 4) -> Path:
    """As `numpy.save` does, which always uses the newest protocol, with any of them."""
    array = np.empty((), object)
    array[()] = content
    path.write_bytes(HEADER + pickle.dumps(array, protocol=protocol))
    return path


def test_what_numpy_saves_is_read(tmp_path: Path) -> None:
    vectors = {f"2007_{i:06d}": np.eye(20, dtype=np.float32)[i % 20] for i in range(50)}
    np.save(tmp_path / "x.npy", vectors, allow_pickle=True)
    found = read_pickled_dict(tmp_path / "x.npy")
    assert found.keys() == vectors.keys()
    for name, vector in found.items():
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, vectors[name])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.dictionaries(
        st.text(max_size=5) | st.integers(),
        st.sampled_from(["<f4", ">f8", "<i8", "|u1", "|b1", "<f2"]).flatmap(
            lambda dtype: arrays(np.dtype(dtype), array_shapes(max_dims=3, max_side=4))
        ),
        max_size=4,
    ),
    protocol=st.integers(2, 4),
    fortran=st.booleans(),
)
def test_any_dict_of_arrays_comes_back(tmp_path: Path, content: dict, protocol: int, fortran: bool) -> None:
    if fortran:
        content = {key: np.asfortranarray(array) for key, array in content.items()}
    found = read_pickled_dict(save(tmp_path / "x.npy", content, protocol))
    assert list(found) == list(content)
    for key, array in content.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_a_file_of_python_2_is_read(tmp_path: Path) -> None:
    # Its text is a byte string, and so are the bytes of its arrays: opcode U in place of X and C.
    stream = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01)"
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]"
        b"}U\x012cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x02\x07\xfftbsatb."
    )
    (tmp_path / "x.npy").write_bytes(HEADER + stream)
    assert read_pickled_dict(tmp_path / "x.npy")["2"].tolist() == [7, 255]


class Trap:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(2, 5))
def test_a_pickle_that_runs_a_program_runs_nothing(tmp_path: Path, protocol: int) -> None:
    sprung = tmp_path / "sprung"
    for content in (Trap(sprung), {"a": Trap(sprung)}, {"a": [Trap(sprung), np.zeros(2)]}):
        save(tmp_path / "x.npy", content, protocol)
        with pytest.raises(
            WeaksegError, match=r"x\.npy is not a NumPy file of a dict .*asks for \w+\.mkdir.*any program"
        ):
            read_pickled_dict(tmp_path / "x.npy")
    assert not sprung.exists()


@pytest.mark.parametrize(
    "content",
    [
        [np.zeros(2)],
        {"a": [1, 2]},
        {"a": {"b": np.zeros(2)}},
        {("a", 1): np.zeros(2)},
        {"a": np.array(["text"])},
        {"a": np.array([None])},
        {"a": np.zeros(1, [("field", "f4")])},
        "text",
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(WeaksegError, match=r"x\.npy is not a NumPy file of a dict of arrays"):
        read_pickled_dict(save(tmp_path / "x.npy", content))


def test_a_plain_array_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    for name in ("x.npy", "none.npy"):
        with pytest.raises(WeaksegError, match=rf"{name} is not a NumPy file of a dict"):
            read_pickled_dict(tmp_path / name)


def test_a_size_that_is_only_claimed_takes_no_memory(tmp_path: Path) -> None:
    memo_at_4_billion = b"\x80\x04}r\xff\xff\xff\xff."
    text_of_an_exabyte = b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little")
    buffer_of_a_gigabyte = b"\x80\x05\x96" + (1 << 30).to_bytes(8, "little")
    for stream in (memo_at_4_billion, text_of_an_exabyte, buffer_of_a_gigabyte):
        (tmp_path / "x.npy").write_bytes(HEADER + stream)
        tracemalloc.start()
        with pytest.raises(WeaksegError, match=r"x\.npy is not a NumPy file of a dict"):
            read_pickled_dict(tmp_path / "x.npy")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_never_gives_another_exception(tmp_path: Path, data: st.DataObject) -> None:
    memory = io.BytesIO()
    np.save(memory, {"a": np.arange(3.0), 5: np.eye(2)}, allow_pickle=True)
    content = bytearray(memory.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.npy").write_bytes(content)
    try:
        found = read_pickled_dict(tmp_path / "x.npy")
        assert all(isinstance(array, np.ndarray) for array in found.values())
    except WeaksegError as error:
        assert "x.npy" in str(error)
