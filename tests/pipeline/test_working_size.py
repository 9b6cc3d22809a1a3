"""One working size: a run on large photographs works on small copies of them, and its masks are of full size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny import TINY, write_tiny_voc
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import read_image, read_label_map, write_label_map
from weakseg.data.loading import ReadFolder, ReadMarks, read_fields
from weakseg.data.opening import open_dataset
from weakseg.data.working_size import at_working_size
from weakseg.files import read_json
from weakseg.labels import Point, Scribble, WeakLabels
from weakseg.methods.store import load_model
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.fields import ImageField
from weakseg.pipeline.context import Context
from weakseg.pipeline.recipe import load_recipe
from weakseg.pipeline.run import parts, run, stage_keys, working_size
from weakseg.report.folder import RunFolder
from weakseg.report.run import write_report
from weakseg.runtime import start

LONG_SIDE = 32
SIZES = {"train 0": (36, 44), "train 1": (40, 48)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_tiny_voc(tmp_path_factory.mktemp("size") / "data"))


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("size") / "run"
    run(load_recipe("toy-cam", [*TINY, f"data.long_side={LONG_SIDE}", "masks.crf=deeplab"]), dataset, root)
    return root


def sample_of(dataset: Dataset, name: str = "train 0") -> Sample:
    return next(sample for sample in dataset.split("train") if sample.name == name)


@pytest.mark.parametrize(
    ("recipe", "size"), [("cam", 352), ("irnet", 352), ("supervised", 352), ("irnet-voc12", 640), ("icd-voc12", None)]
)
def test_the_size_follows_from_the_training_of_the_localiser(recipe: str, size: int | None) -> None:
    assert working_size(load_recipe(recipe)) == size
    assert working_size(load_recipe(recipe, ["data.long_side=500"])) == 500
    assert working_size(load_recipe(recipe, ["data.long_side=null"])) is None


def test_larger_images_are_read_scaled_down_and_others_as_they_are(dataset: Dataset) -> None:
    samples = {sample.name: sample for sample in at_working_size(dataset.split("train"), 44)}
    unchanged, scaled = samples["train 0"], samples["train 1"]
    assert unchanged.long_side is None
    np.testing.assert_array_equal(unchanged.read_image(), read_image(unchanged.image))
    assert scaled.size() == scaled.read_image().shape[:2] == (37, 44)
    assert at_working_size(dataset.split("train"), None) == dataset.split("train")


def test_keys_change_where_images_are_scaled_and_nowhere_else(dataset: Dataset, tmp_path: Path) -> None:
    def keys(long_side: str) -> dict[str, str]:
        recipe = load_recipe("toy-cam", [*TINY, f"data.long_side={long_side}"])
        fabric = start(recipe.runtime)
        return stage_keys(Context(recipe.stages, dataset, 0, recipe.runtime, fabric, tmp_path, *parts(dataset, recipe)))

    assert keys("48") == keys("null") == keys("auto")
    assert all(keys("47")[name] != key for name, key in keys("48").items())


def test_masks_have_the_size_of_the_photographs_and_maps_that_of_the_work(finished: Path, dataset: Dataset) -> None:
    for name, size in SIZES.items():
        assert read_label_map(finished / "masks" / "masks" / f"{name}.png").shape == size
        height, width = ActivationMaps.load(finished / "maps" / "maps" / f"{name}.npz").size
        assert max(height, width) == LONG_SIDE
    predictions = finished / "scores" / "predictions" / "segment"
    for sample in dataset.split("val"):
        assert read_label_map(predictions / f"{sample.name}.png").shape == read_image(sample.image).shape[:2]
    assert all(row["images"] for row in read_json(finished / "scores" / "scores.json")["rows"])
    assert load_model(finished / "cam" / "model").long_side == LONG_SIDE
    assert load_model(finished / "segment" / "model").long_side == LONG_SIDE


def test_the_report_shows_such_a_run(finished: Path) -> None:
    _, samples = RunFolder.read(finished).open_data()
    assert {max(sample.size()) for sample in samples["train"].values()} == {LONG_SIDE}
    assert "Left out" not in write_report(finished).read_text(encoding="utf-8")


def test_a_model_is_described_anew_when_only_its_use_changes(dataset: Dataset, tmp_path: Path) -> None:
    for long_side in (None, 48):
        recipe = load_recipe("toy-cam", [*TINY, f"data.long_side={'null' if long_side is None else long_side}"])
        run(recipe, dataset, tmp_path, until="cam")
        assert load_model(tmp_path / "cam" / "model").long_side == long_side


def test_fields_of_full_size_follow_the_image(dataset: Dataset, tmp_path: Path) -> None:
    sample = replace(sample_of(dataset), long_side=22)
    values = np.random.default_rng(0).integers(0, 256, (36, 44), np.uint8)
    write_label_map(tmp_path / f"{sample.name}.png", values)
    for follows, shape in (("labels", (18, 22)), ("maps", (1, 18, 22))):
        field = ImageField(follows)
        read = read_fields(sample, [ReadFolder("it", field, tmp_path)], {"it": field})
        assert read["image"].shape == (18, 22, 3)
        assert read["it"].shape == shape
    np.testing.assert_allclose(
        read["it"][0], values.reshape(18, 2, 22, 2).mean((1, 3), dtype=np.float32) / 255, atol=1e-5
    )


def test_no_mark_is_lost_when_the_image_is_scaled_down(dataset: Dataset) -> None:
    points = (Point(1, 5, 7), Point(2, 43, 35))
    labels = WeakLabels(points=points, scribbles=(Scribble(0, ((0, 20), (43, 20))),))
    sample = replace(sample_of(dataset), labels=labels, long_side=11)
    assert sample.size() == (9, 11)
    marks = ReadMarks()(sample)["marks"]
    assert marks.shape == (9, 11)
    assert (marks[1, 1], marks[8, 10]) == (1, 2)
    assert (marks[5] == 0).all()
    assert np.count_nonzero(marks != 255) == 13


def test_supervised_training_reads_masks_of_full_size(dataset: Dataset, tmp_path: Path) -> None:
    recipe = load_recipe(
        "toy-supervised", [*(t for t in TINY if t.startswith(("segment", "runtime"))), "data.long_side=24"]
    )
    run(recipe, dataset, tmp_path, until="segment")
    assert load_model(tmp_path / "segment" / "model").long_side == 24


def test_an_image_that_cannot_be_read_is_left_to_those_who_tell(dataset: Dataset, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    Image.new("RGB", (100, 50)).save(tmp_path / "sound.png")
    found = at_working_size([Sample("a", broken), Sample("b", tmp_path / "sound.png")], 64)
    assert [sample.long_side for sample in found] == [None, 64]
