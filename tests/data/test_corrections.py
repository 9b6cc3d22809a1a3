"""Corrected masks: beside the images of every layout, label maps as a run writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from weakseg.data.check import check_dataset
from weakseg.data.corrections import FOLDER
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError

Save = Callable[..., Path]


def size_of(root: Path) -> tuple[Path, str, tuple[int, int]]:
    """A training image with its name and size."""
    from weakseg.data.images import image_size

    sample = open_dataset(root).split("train")[0]
    return sample.image, sample.name, image_size(sample.image)


@pytest.mark.parametrize("format", ["voc", "coco", "folder"])
def test_every_layout_may_have_corrected_masks(format: str, request: pytest.FixtureRequest, save_mask: Save) -> None:
    root = request.getfixturevalue(format)
    _, name, size = size_of(root)
    values = np.arange(size[0] * size[1]).reshape(size) % 2
    values[0] = 255
    save_mask(root / FOLDER / f"{name}.png", values)
    dataset = open_dataset(root)
    corrected = {s.name: s.corrected for samples in dataset.splits.values() for s in samples if s.corrected}
    assert list(corrected) == [name]
    np.testing.assert_array_equal(corrected[name].read(), values)  # labels, also where masks have other numbers


def test_a_corrected_mask_is_not_the_mask(folder: Path, save_mask: Save) -> None:
    _, name, size = size_of(folder)
    before = {sample.name: sample.mask for sample in open_dataset(folder).split("train")}
    save_mask(folder / FOLDER / f"{name}.png", np.ones(size))
    assert {sample.name: sample.mask for sample in open_dataset(folder).split("train")} == before


def test_a_file_without_an_image_is_told(folder: Path, save_mask: Save) -> None:
    path = save_mask(folder / FOLDER / "nobody.png", [[0]])
    with pytest.raises(WeaksegError) as caught:
        open_dataset(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("values", [np.full((6, 8), 77), np.zeros((6, 9))])
def test_a_check_finds_what_does_not_fit(voc: Path, save_mask: Save, values: np.ndarray) -> None:
    assert check_dataset(voc).problems == []
    save_mask(voc / FOLDER / "a.png", values)
    (problem,) = check_dataset(voc).problems
    assert ("77" in problem and f"{FOLDER}/a.png" in problem) or ("corrected" in problem and "9" in problem)
