"""CDA: what a pool keeps, what pasting changes and what it leaves alone, and where its randomness comes from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weakseg.data.dataset import Sample
from weakseg.data.images import write_image
from weakseg.data.loading import Draw, ReadTags, TrainingImages
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.labels import Classes, WeakLabels
from weakseg.methods.cda import (
    Cutout,
    PastedPairs,
    Placing,
    Pool,
    Settings,
    cut_out,
    draw_placing,
    paste,
    simple_label,
    turned_size,
    warp_by_splines,
    warp_once,
    with_pasting,
)
from weakseg.ops.fields import GEOMETRY, LABELS, TAGS, ImageField

CLASSES = Classes(["kettle", "spoon", "cup"])
RED, GREEN, BLUE = (200, 40, 30), (40, 160, 60), (30, 60, 210)


def flat(size: tuple[int, int], colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def disc(side: int = 41, label: int = 1) -> Cutout:
    """A blue disc on red: what surrounds an object is not to be pasted with it."""
    rows, columns = np.mgrid[:side, :side] - side // 2
    inside = rows**2 + columns**2 <= (side // 2) ** 2
    return Cutout(label, np.where(inside[..., None], BLUE, RED).astype(np.uint8), inside)


# The pool


@pytest.mark.parametrize(
    ("mask", "label"),
    [
        ([[0, 3], [0, 3]], 3),
        ([[0, 3], [2, 3]], None),
        ([[0, 255], [0, 255]], None),
        ([[0, 3], [255, 3]], None),
        ([[0, 0], [0, 0]], None),
        ([[3, 3], [3, 3]], None),
    ],
)
def test_only_a_single_class_on_a_part_of_the_image_is_kept(mask: list[list[int]], label: int | None) -> None:
    assert simple_label(np.array(mask, np.uint8), 0.1, 0.7) == label


def test_a_crop_keeps_its_holes() -> None:
    mask = np.zeros((6, 9), np.uint8)
    mask[1:5, 2:8] = 2
    mask[2:4, 4] = 0
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    cutout = cut_out(image, mask)
    assert cutout.label == 2
    assert np.array_equal(cutout.image, image[1:5, 2:8])
    assert np.array_equal(cutout.inside, mask[1:5, 2:8] == 2)


def test_a_pool_survives_writing_and_reading(tmp_path: Path) -> None:
    written = Cutout(2, np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), np.eye(5, 7) > 0)
    Pool.write(tmp_path, "a folder/löffel 1", written)
    Pool.write_index(tmp_path, CLASSES, {2: ["a folder/löffel 1"]})
    pool = Pool.load(tmp_path, CLASSES)
    assert pool.labels == [2]
    read = pool.read(2, "a folder/löffel 1")
    assert read.label == 2
    assert np.array_equal(read.image, written.image), "colours outside of the object are kept"
    assert np.array_equal(read.inside, written.inside)


@pytest.mark.parametrize("index", [[], {}, {"kettle": []}, {"kettle": [], "spoon": [], "cup": [1]}])
def test_an_index_of_something_else_is_refused(index: Any, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(WeaksegError, match="is no index of a pool with the classes kettle, spoon, cup"):
        Pool.load(tmp_path, CLASSES)


def test_a_crop_without_opacity_is_refused(tmp_path: Path) -> None:
    Pool.write_index(tmp_path, CLASSES, {1: ["a"]})
    write_image(Pool.path(tmp_path, 1, "a"), flat((4, 4), RED))
    with pytest.raises(WeaksegError, match=r"1/a\.png has no opacity"):
        Pool.load(tmp_path, CLASSES).read(1, "a")


# Pasting

sides = st.integers(1, 60)
sizes = st.tuples(sides, sides)
variants: Any = st.sampled_from(["rotate", "scale", "rotate_blur"])


@settings(max_examples=60)
@given(crop=sizes, background=sizes, variant=variants, parity=st.booleans(), seed=st.integers(0, 99))
def test_anything_can_be_pasted_on_anything(
    crop: tuple[int, int], background: tuple[int, int], variant: Any, parity: bool, seed: int
) -> None:
    image, cutout = flat(background, GREEN), Cutout(3, flat(crop, BLUE), np.ones(crop, bool))
    placing = draw_placing(crop, background, variant, np.random.default_rng(seed))
    assert all(1 <= side <= space for side, space in zip(placing.size, background, strict=True))
    pasted = paste(image, cutout, Settings(variant=variant, parity=parity), np.random.default_rng(seed))
    assert pasted.shape == image.shape
    assert np.all(image == GREEN), "the original is left alone"
    outside = np.ones(background, bool)
    (height, width), row, column = placing.size, placing.row, placing.column
    outside[row : row + height, column : column + width] = False
    assert np.all(pasted[outside] == GREEN)


@pytest.mark.parametrize("degrees", [-90, -37, 0, 12, 90])
def test_a_turned_object_keeps_its_area_and_its_colour(degrees: int) -> None:
    cutout = disc()
    size = turned_size(cutout.inside.shape, degrees)
    image, inside = warp_once(cutout, Placing(degrees, size, 0, 0))
    assert inside.sum() == pytest.approx(cutout.inside.sum(), rel=0.02)
    assert np.abs(image[inside].astype(int) - BLUE).max() <= 3, "nothing of its surroundings"


@pytest.mark.parametrize("factor", [0.8, 0.5, 0.3])
def test_a_reduced_object_has_its_share_of_the_area(factor: float) -> None:
    cutout = disc(121)
    side = round(121 * factor)
    _, inside = warp_once(cutout, Placing(0, (side, side), 0, 0))
    assert inside.sum() == pytest.approx((side / 121) ** 2 * cutout.inside.sum(), rel=0.03)


@pytest.mark.parametrize("degrees", [-71, -20, 45, 90])
def test_one_warp_turns_as_the_splines_do(degrees: int) -> None:
    """An object without symmetry; splines lose pixels where it touches the border of its crop."""
    rows, columns = np.mgrid[:60, :90]
    inside = (rows > 30) | (columns < 25)
    image = np.stack([4 * rows, 2 * columns, rows + columns], 2).astype(np.uint8)
    cutout = Cutout(1, image, inside)
    height, width = turned_size(inside.shape, degrees)
    placing = Placing(degrees, (round(0.9 * height), round(0.9 * width)), 0, 0)
    (one, one_inside), (other, other_inside) = warp_once(cutout, placing), warp_by_splines(cutout, placing)
    assert (one_inside & other_inside).sum() > 0.92 * (one_inside | other_inside).sum()
    both = one_inside & other_inside
    assert np.median(np.abs(one[both].astype(int) - other[both])) <= 2


def test_softened_borders_bring_no_surroundings() -> None:
    pasted = paste(flat((80, 80), GREEN), disc(), Settings(variant="rotate_blur"), np.random.default_rng(0)).astype(int)
    assert pasted[..., 0].max() <= max(GREEN[0], BLUE[0]) + 3, "no red"
    partly = (pasted[..., 2] > GREEN[2] + 20) & (pasted[..., 2] < BLUE[2] - 20)
    assert partly.any()


# Pairs


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    for label, name in ((1, "a"), (1, "b"), (3, "c")):
        Pool.write(tmp_path / "pool", name, disc(21, label))
    Pool.write_index(tmp_path / "pool", CLASSES, {1: ["a", "b"], 3: ["c"]})
    return Pool.load(tmp_path / "pool", CLASSES)


@pytest.fixture
def images(tmp_path: Path) -> TrainingImages:
    samples = []
    for number, tags in enumerate([{1}, {2}, {1, 3}, set()]):
        write_image(tmp_path / f"{number}.png", flat((40, 30 + number), GREEN))
        samples.append(Sample(str(number), tmp_path / f"{number}.png", WeakLabels(frozenset(tags))))
    return TrainingImages(samples, [ReadTags(3)], {"tags": TAGS}, Augmentation(crop=32, scale_range=(0.8, 1.2)), seed=5)


def test_tags_are_those_of_both(pool: Pool, images: TrainingImages) -> None:
    pairs = PastedPairs(images, pool, Settings())
    seen: dict[int, set[tuple[float, ...]]] = {}
    for place in range(40):
        original, pasted = pairs.pair(Draw(0, place, place % 4))
        assert torch.equal(original["tags"], images[Draw(0, place, place % 4)]["tags"])
        assert pasted["tags"].dtype == torch.float32
        seen.setdefault(place % 4, set()).add(tuple(pasted["tags"].tolist()))
    assert seen == {
        0: {(1, 0, 1)},
        1: {(1, 1, 0), (0, 1, 1)},
        2: {(1, 0, 1)},  # all classes that have crops are there: pasted on is nothing
        3: {(1, 0, 0), (0, 0, 1)},
    }


def test_originals_are_what_they_are_without_pasting(pool: Pool, images: TrainingImages) -> None:
    pairs = PastedPairs(images, pool, Settings())
    draws = [Draw(2, place, place) for place in range(4)]
    batch = pairs.__getitems__(draws)
    assert len(batch) == 8
    for item, draw in zip(batch, draws, strict=False):
        assert torch.equal(item["image"], images[draw]["image"])
    for original, pasted, number in zip(batch[:4], batch[4:], range(4), strict=True):
        assert original["image"].shape == pasted["image"].shape
        assert (pasted["image"][2].max() > original["image"][2].max() + 1) == (number != 2), "something blue is there"


def test_a_pair_is_a_function_of_seed_epoch_and_place(pool: Pool, images: TrainingImages) -> None:
    def drawn(seed: int, epoch: int, place: int) -> bytes:
        seeded = replace(images, seed=seed)
        return PastedPairs(seeded, pool, Settings()).pair(Draw(epoch, place, 3))[1]["image"].numpy().tobytes()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(1, 2, 3), drawn(0, 2, 3), drawn(1, 0, 3), drawn(1, 2, 0)}) == 4


def test_classes_are_drawn_alike_whatever_the_number_of_their_crops(pool: Pool) -> None:
    rng = np.random.default_rng(0)
    drawn = [pool.draw(np.zeros(3, np.float32), rng) for _ in range(400)]
    labels = [pick[0] for pick in drawn if pick is not None]
    assert 160 < labels.count(1) < 240
    assert labels.count(1) + labels.count(3) == 400
    assert {pick for pick in drawn if pick is not None and pick[0] == 1} == {(1, "a"), (1, "b")}


def test_classes_with_few_crops_are_never_pasted(
    pool: Pool, images: TrainingImages, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = with_pasting(images, pool, Settings(fewest_crops=2), CLASSES)
    assert isinstance(pairs, PastedPairs)
    few = [name for name, crops in zip(CLASSES.names, pool.names, strict=True) if len(crops) == 1]
    assert f"Fewer than 2 crops, so never pasted: {', '.join(few)}." in caplog.text
    rng = np.random.default_rng(0)
    assert {pick[0] for _ in range(50) if (pick := pairs.pool.draw(np.zeros(3, np.float32), rng))} == {1}
    assert pairs.pool.draw(np.array([1, 0, 0], np.float32), rng) is None


@pytest.mark.parametrize("fewest", [1, 10])
def test_a_pool_of_too_few_is_said_and_nothing_is_pasted(
    images: TrainingImages, pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture, fewest: int
) -> None:
    Pool.write_index(tmp_path / "empty", CLASSES, {})
    given = pool if fewest == 10 else Pool.load(tmp_path / "empty", CLASSES)
    assert with_pasting(images, given, Settings(fewest_crops=fewest), CLASSES) is images
    assert f"has {fewest} crops: the classifier is trained without pasting" in caplog.text


@pytest.mark.parametrize("beside", [LABELS, ImageField("ids"), ImageField("maps")])
def test_nothing_is_pasted_where_a_field_shows_what_lies_below(
    images: TrainingImages, pool: Pool, beside: ImageField
) -> None:
    with pytest.raises(WeaksegError, match="clues"):
        with_pasting(replace(images, fields={"tags": TAGS, "clues": beside}), pool, Settings(fewest_crops=1), CLASSES)


def test_fields_without_pixels_of_their_own_go_with_pasting(images: TrainingImages, pool: Pool) -> None:
    beside = {"tags": TAGS, "vector": ImageField("whole"), "view": GEOMETRY}
    described = replace(
        images, fields=beside, readers=[*images.readers, lambda sample: {"vector": np.array([float(sample.name)])}]
    )
    pairs = with_pasting(described, pool, Settings(fewest_crops=1), CLASSES)
    assert isinstance(pairs, PastedPairs)
    for item in pairs.pair(Draw(0, 0, 3)):
        assert item["vector"].tolist() == [3.0]
        assert item["view"].shape == (5,)
