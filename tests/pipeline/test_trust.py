"""Trust in pseudo-masks: written by the stage of masks, told by the report, the worst first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tiny import TINY, write_tiny_voc
from weakseg.data.images import read_label_map
from weakseg.data.opening import open_dataset
from weakseg.files import read_json, write_json
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.trust import rank_correlation
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import run
from weakseg.pipeline.trust import TRUST_NAME, trust_in
from weakseg.report.folder import RunFolder
from weakseg.report.run import write_report
from weakseg.report.trust import judged


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    data = write_tiny_voc(folder / "data", val=0)
    changes = [*TINY, "masks.threshold=0.4", "masks.crf=null", "segment=null"]
    run(load_recipe("toy-cam", changes), open_dataset(data), folder / "run", lambda line: None)
    return folder / "run"


def test_every_class_of_every_image_is_judged(finished: Path) -> None:
    found = read_json(finished / "masks" / TRUST_NAME)
    assert sorted(found) == sorted(f"train {number}" for number in range(8))
    threshold = read_json(finished / "masks" / "threshold.json")["threshold"]
    for name, of_image in found.items():
        maps = ActivationMaps.load(finished / "maps" / "maps" / f"{name}.npz")
        assert list(of_image["classes"]) == [str(label) for label in maps.labels]
        mask = read_label_map(finished / "masks" / "masks" / f"{name}.png")
        before = np.where(maps.maps[0] > np.float32(threshold), maps.labels[0], 0).astype(np.uint8)
        assert of_image == trust_in(maps, before, mask)
        for trust in of_image["classes"].values():
            assert trust["trust"] == pytest.approx(trust["fit"] * trust["contrast"], abs=2e-4)
            assert 0 <= trust["trust"] <= 1


def test_cells_of_maps_and_pixels_of_masks_are_of_one_place() -> None:
    """A mask that is one column of cells meets these cells, also where the last cells are cut."""
    maps = ActivationMaps(np.array([2], np.int16), np.zeros((1, 3, 4), np.float16), (9, 14))
    for column in range(4):
        mask = np.zeros((9, 14), np.uint8)
        mask[:, 4 * column : 4 * column + 4] = 2
        before = np.zeros((3, 4), np.uint8)
        before[:, column] = 2
        assert trust_in(maps, before, mask)["classes"]["2"]["fit"] == 1


def test_the_report_begins_with_the_worst_and_says_how_well_that_ranks(finished: Path) -> None:
    order = judged(RunFolder.read(finished), "masks")
    assert [image.trust for image in order] == sorted(image.trust for image in order)
    text = write_report(finished).read_text(encoding="utf-8")
    assert text.index(f">{order[0].name}</th>") < text.index(f">{order[-1].name}</th>")
    table = text[text.index(f">{order[0].name}</th>") :]
    assert table.index(f">{100 * order[0].trust:.1f}</td>") < table.index(f">{order[1].name}</th>")
    assert text.index(">Trust</h2>") < text.index(">Pictures</h2>")
    iou = RunFolder.read(finished).image_iou("CAM + CRF", "score")
    expected = rank_correlation([image.trust for image in order], [iou[image.name] or 0 for image in order])
    assert expected is not None
    assert f"{expected:.2f}" in text


def test_runs_that_do_not_tell_have_no_part_of_trust(
    finished: Path, tmp_path: Path, copy_tree: Callable[[Path, Path], Path]
) -> None:
    copy = copy_tree(finished, tmp_path / "run")
    write_json(
        copy / "masks" / TRUST_NAME,
        {name: {"trust": None, "classes": {}} for name in read_json(copy / "masks" / TRUST_NAME)},
    )
    assert judged(RunFolder.read(copy), "masks") == []
    (copy / "masks" / TRUST_NAME).unlink()
    assert ">Trust</h2>" not in write_report(copy).read_text(encoding="utf-8")
