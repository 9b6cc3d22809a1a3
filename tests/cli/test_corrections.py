"""The loop of a user: run, look, correct, run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import TINY, set_options
from weakseg.data.images import read_label_map, write_label_map

NAME = "train 3"


def test_a_mask_corrected_in_the_run_is_told_and_used_once_it_lies_in_the_data(
    weakseg: Any, finished: Any, tmp_path: Path, copy_tree: Any
) -> None:
    data, root = copy_tree(finished.data, tmp_path / "data"), copy_tree(finished.run, tmp_path / "run")
    command = ("run", "toy-cam", "--data", data, "--out", root, *set_options(*TINY))
    path = root / "masks" / "masks" / f"{NAME}.png"
    write_label_map(path, 2 - read_label_map(path).clip(0, 1))
    told = weakseg(*command)
    assert told.status == 0
    assert [line for line in told.out.splitlines() if NAME in line and str(data / "corrected") in line]
    write_label_map(data / "corrected" / f"{NAME}.png", read_label_map(path))
    used = weakseg(*command)
    assert used.status == 0
    assert "segment: running" in used.out
    assert "corrected masks (1)" in used.out
    assert NAME not in used.out
    assert f"{NAME}" in (root / "report.html").read_text(encoding="utf-8")
