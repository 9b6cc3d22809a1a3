"""What a stage of maps tells its localiser: several maps of one network, made anew when they are told otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny import write_tiny_voc
from weakseg.data.dataset import Dataset
from weakseg.data.opening import open_dataset
from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.stages.maps import Maps, read_maps

SHORT = (
    "runtime.device=cpu",
    "cam.augment={crop: 33}",
    "cam.train={steps: 2, batch_size: 4, epochs: null}",
    "superpixels.k=20",
    "superpixels.min_size=5",
    "masks=null",
    "segment=null",
    "scores=null",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path_factory.mktemp("data")))


def running(dataset: Dataset, root: Path, *changes: str) -> list[str]:
    """The stages that a run carries out."""
    said: list[str] = []
    run(load_recipe("toy-icd", [*SHORT, *changes]), dataset, root, said.append)
    return [line.removesuffix(": running") for line in said if line.endswith(": running")]


def test_one_network_makes_several_maps(dataset: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert running(dataset, root) == ["superpixels", "cam", "maps", "cam_maps"]
    for sample in dataset.split("train"):
        icd, cam = (read_maps(root / stage, sample) for stage in ("maps", "cam_maps"))
        assert icd.signed
        assert cam.signed
        assert icd.maps.shape == cam.maps.shape
        assert not np.array_equal(icd.maps, cam.maps)
        assert np.array_equal(Maps.array_of(root / "maps", sample), icd.upsampled())
    # Nothing is trained anew, and only those maps are made again that are told something else.
    assert running(dataset, root, "cam_maps.options.align_corners=false") == ["cam_maps"]
    assert running(dataset, root, "cam.options.canvas=65") == ["maps", "cam_maps"]
    assert running(dataset, root, "cam.options.canvas=65", "maps.options.canvas=65") == []
    assert running(dataset, root, "cam.options.canvas=65", "maps.mirror=false") == ["maps", "cam_maps"]


def test_a_wrong_option_is_named_before_anything_is_trained(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"maps\.options\.sigend.*signed"):
        running(dataset, tmp_path / "run", "maps.options={sigend: true}")
    assert not (tmp_path / "run" / "cam").exists()
