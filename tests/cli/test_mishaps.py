"""What the system does to a command: streams and file names that are not UTF-8, limits, readers that have gone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import process
from tiny import TINY, set_options
from weakseg.data.images import write_label_map
from weakseg.errors import WeaksegError, explain, out_of_memory


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A data set of a class whose name few encodings have."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (20, 16), "red").save(tmp_path / "images" / f"{name}.png")
        write_label_map(tmp_path / "masks" / f"{name}.png", np.resize(np.array([0, 1], np.uint8), (16, 20)))
    (tmp_path / "labels.csv").write_text("image,tags\na,猫\nb,猫\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "utf-8:strict"])
@pytest.mark.parametrize("words", [("data", "check"), ("data", "summary")])
def test_streams_that_lack_letters(odd: Path, encoding: str, words: tuple[str, ...]) -> None:
    done = process(*words, odd, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert ("猫" in done.stdout) == encoding.startswith("utf-8")
    assert "\\u732b" in done.stdout or encoding.startswith("utf-8")


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
@pytest.mark.parametrize("words", [("data", "check"), ("data", "summary")])
def test_names_that_are_not_utf8(odd: Path, words: tuple[str, ...]) -> None:
    (odd / "images" / "a.png").rename(odd / "images" / os.fsdecode(b"caf\xe9.png"))
    done = process(*words, odd, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "caf\\udce9.png: the name of the file, or of its folder, is not UTF-8" in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_data_set_in_a_folder_whose_name_is_not_utf8(odd: Path, tmp_path: Path) -> None:
    root = odd.rename(tmp_path.parent / os.fsdecode(b"caf\xe9"))
    out = root / "scores"
    done = process("evaluate", root / "masks", "--data", root, "--out", out, PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 0, done.stderr
    assert (out / "scores.json").is_file()


def test_a_reader_that_has_gone(odd: Path) -> None:
    command = f"{sys.executable} -m weakseg recipes | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_too_many_open_files(tiny_voc: Path, tmp_path: Path) -> None:
    command = ["run", "toy-cam", "--data", tiny_voc, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "weakseg", *map(str, command), *set_options(*TINY, "runtime.workers=8")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
    )
    assert done.returncode == 1
    # Threads of the workers complain by themselves before, and may leave a line without an end.
    last = done.stderr.splitlines()[-1]
    assert "Error: Too many files are open at once. Raise the limit (`ulimit -n 4096`)" in last


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("runtime.workers=-1", "runtime.workers: expected a number of 0 or more or auto (found -1)."),
        ("runtime.workers=many", 'runtime.workers: expected a whole number or auto (found "many").'),
        ("cam.augment.crop=1", "cam.augment.crop: expected a number of 8 or more (found 1)."),
        ("cam.augment.crop=100000", "cam.augment.crop: expected a number of 8192 or less (found 100000)."),
        ("maps.scales=[0]", "maps.scales[0]: expected a number of 0.01 or more (found 0)."),
    ],
)
def test_impossible_settings(weakseg: Any, tiny_voc: Path, tmp_path: Path, setting: str, message: str) -> None:
    answer = weakseg("run", "toy-cam", "--data", tiny_voc, "--out", tmp_path / "run", "--set", setting)
    assert (answer.status, answer.err) == (1, f"Error: {message}")


# Exceptions


def numpy_without_memory() -> None:
    np.empty(1 << 60, np.uint8)


def torch_without_memory() -> None:
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("fill", [numpy_without_memory, torch_without_memory])
def test_a_full_memory_is_recognised(fill: Callable[[], None]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        fill()
    assert out_of_memory(caught.value)
    assert "The computer's memory is full" in str(explain(caught.value))


def test_what_the_system_refuses_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / "a" / "b").read_bytes()
    assert str(explain(caught.value)).startswith(f"{tmp_path / 'a' / 'b'}: ")


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), WeaksegError("x"), OSError("x")])
def test_a_bug_is_not_explained_away(error: Exception) -> None:
    assert explain(error) is None
    assert not out_of_memory(error)
