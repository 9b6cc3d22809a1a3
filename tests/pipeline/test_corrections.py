"""Run, look, correct, run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tiny import TINY, write_tiny_voc
from weakseg.data.corrections import FOLDER
from weakseg.data.images import read_label_map, write_label_map
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.stages.masks import Masks
from weakseg.pipeline.stages.segment import ReadLabels
from weakseg.report.run import write_report

NAME = "train 3"


def carried_out(data: Path, root: Path, *overrides: str, redo: tuple[str, ...] = ()) -> list[str]:
    """Run the recipe toy-cam; what was said."""
    said: list[str] = []
    run(load_recipe("toy-cam", [*TINY, *overrides]), open_dataset(data), root, said.append, redo=redo)
    return said


def running(said: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in said if line.endswith(": running")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    data = write_tiny_voc(folder / "data", val=0)
    carried_out(data, folder / "run")
    return data, folder / "run"


@pytest.fixture
def copied(finished: tuple[Path, Path], tmp_path: Path, copy_tree: Callable[[Path, Path], Path]) -> tuple[Path, Path]:
    """Its own copy of data and run: others' times, equal contents."""
    data, root = finished
    return copy_tree(data, tmp_path / "data"), copy_tree(root, tmp_path / "run")


def edit(root: Path) -> Path:
    """Paint in a pseudo-mask of the run."""
    path = root / "masks" / "masks" / f"{NAME}.png"
    labels = read_label_map(path)
    labels[:10] = 2 - labels[:10].clip(0, 1)
    write_label_map(path, labels)
    return path


def test_a_corrected_mask_is_learned_from_by_the_segmenter_alone(copied: tuple[Path, Path]) -> None:
    data, root = copied
    pseudo = read_label_map(root / "masks" / "masks" / f"{NAME}.png")
    weights = (root / "segment" / "model" / "model.safetensors").read_bytes()
    corrected = np.full_like(pseudo, 1)
    write_label_map(data / FOLDER / f"{NAME}.png", corrected)
    assert running(carried_out(data, root)) == ["segment", "scores"]
    np.testing.assert_array_equal(read_label_map(root / "masks" / "masks" / f"{NAME}.png"), pseudo)
    assert (root / "segment" / "model" / "model.safetensors").read_bytes() != weights
    read = {
        sample.name: ReadLabels(Masks, root / "masks", partial=False)(sample)["labels"]
        for sample in open_dataset(data).split("train")
    }
    np.testing.assert_array_equal(read.pop(NAME), corrected)
    for name, labels in read.items():
        np.testing.assert_array_equal(labels, read_label_map(root / "masks" / "masks" / f"{name}.png"))
    assert running(carried_out(data, root)) == []
    write_label_map(data / FOLDER / f"{NAME}.png", pseudo)
    assert running(carried_out(data, root)) == ["segment", "scores"]


def test_a_correction_counts_only_where_pseudo_masks_do(copied: tuple[Path, Path]) -> None:
    data, root = copied
    on_truth = ("segment.masks=null",)
    carried_out(data, root, *on_truth)
    write_label_map(data / FOLDER / f"{NAME}.png", np.ones((40, 48), np.uint8))
    assert running(carried_out(data, root, *on_truth)) == []


def test_the_report_tells_of_corrections_and_calls_them_no_ground_truth(copied: tuple[Path, Path]) -> None:
    data, root = copied
    shutil.rmtree(data / "SegmentationClass")
    write_label_map(data / FOLDER / f"{NAME}.png", np.ones((40, 48), np.uint8))
    carried_out(data, root)
    page = write_report(root).read_text(encoding="utf-8")
    assert "corrected by hand" in page
    assert "ground truth" not in page.replace("no ground truth", "")
    assert json.loads((root / "data.json").read_text())["corrected"] == [NAME]


def test_a_correction_of_another_size_is_refused_before_anything_runs(copied: tuple[Path, Path]) -> None:
    data, root = copied
    write_label_map(data / FOLDER / f"{NAME}.png", np.ones((40, 49), np.uint8))
    with pytest.raises(WeaksegError, match=f"{NAME}.*49×40.*48×40"):
        carried_out(data, root)
    assert running(carried_out(data, root, "segment=null")) == ["scores"]


def test_a_copy_of_a_run_is_not_an_edit(copied: tuple[Path, Path]) -> None:
    data, root = copied
    for path in (root / "masks").rglob("*.png"):
        path.write_bytes(path.read_bytes())
    assert not any(NAME in line for line in carried_out(data, root))


def test_an_edit_in_a_run_is_named_and_where_it_belongs(copied: tuple[Path, Path]) -> None:
    data, root = copied
    path = edit(root)
    told = [line for line in carried_out(data, root) if NAME in line]
    assert len(told) == 1
    assert "masks" in told[0]
    assert str(data / FOLDER) in told[0]
    (data / FOLDER).mkdir()
    shutil.copy(path, data / FOLDER)
    said = carried_out(data, root)
    assert not any(NAME in line for line in said)
    assert running(said) == ["segment", "scores"]


def test_edits_are_not_cleared_away_unasked(copied: tuple[Path, Path]) -> None:
    data, root = copied
    path = edit(root)
    edited = path.read_bytes()
    with pytest.raises(WeaksegError, match=NAME):
        carried_out(data, root, "masks.threshold=0.9")
    assert path.read_bytes() == edited
    assert "masks" in running(carried_out(data, root, "masks.threshold=0.9", redo=("masks",)))
    assert path.read_bytes() != edited
