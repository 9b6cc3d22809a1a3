"""What the networks are fed with. The order of images is tested with the training loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from weakseg.data.dataset import Sample
from weakseg.data.loading import (
    Draw,
    ReadFolder,
    ReadMarks,
    ReadTags,
    TrainingImages,
    balanced_subset,
    generator,
    read_fields,
)
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.labels import VOID, Box, Point, WeakLabels
from weakseg.ops.fields import LABELS, TAGS, ImageField

AS_IT_IS = Augmentation(crop=16, mirror=False)
RANDOM = Augmentation(crop=8, scale_range=(0.5, 2.0))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_tags_are_all_classes_that_any_label_says_to_be_present(picture: Path) -> None:
    labels = WeakLabels(frozenset({1}), boxes=(Box(4, 0, 0, 2, 2),), points=(Point(0, 1, 1),))
    samples = [Sample("a", picture, labels), Sample("b", picture, WeakLabels(frozenset()))]
    images = TrainingImages(samples, [ReadTags(5)], {"tags": TAGS}, AS_IT_IS, seed=0)
    assert len(images) == 2
    assert images[Draw(0, 0, 0)]["tags"].tolist() == [1, 0, 0, 1, 0]
    assert images[Draw(0, 0, 1)]["tags"].tolist() == [0, 0, 0, 0, 0]
    assert images[Draw(0, 0, 0)]["image"].shape == (3, 16, 16)


def test_labels_go_with_their_pixels(picture: Path) -> None:
    """The mask is made from the image's first channel, so it must be found there after every augmentation."""
    red = np.asarray(Image.open(picture))[..., 0]
    images = TrainingImages(
        [Sample("a", picture)], [lambda sample: {"labels": red}], {"labels": LABELS}, AS_IT_IS, seed=0
    )
    item = images[Draw(0, 0, 0)]
    normalised = (red / 255 - 0.485) / 0.229
    np.testing.assert_allclose(item["image"][0].numpy(), normalised, atol=1e-4)
    np.testing.assert_array_equal(item["labels"].numpy(), red)


@pytest.mark.parametrize(
    ("field", "shape"), [(LABELS, (4, 9)), (ImageField("ids"), (4, 9)), (ImageField("maps"), (2, 4, 9))]
)
def test_a_field_of_another_size_is_an_error_that_names_the_image(
    picture: Path, field: ImageField, shape: tuple[int, ...]
) -> None:
    other = np.zeros(shape, np.uint8)
    images = TrainingImages([Sample("a", picture)], [lambda sample: {"clues": other}], {"clues": field}, RANDOM, seed=0)
    with pytest.raises(WeaksegError, match=r"clues of .*picture\.png have 9×4 pixels, the image 16×16"):
        images[Draw(0, 0, 0)]


def test_a_field_without_a_place_may_have_any_size(picture: Path) -> None:
    read = read_fields(Sample("a", picture), [lambda sample: {"vector": np.arange(3)}], {"vector": ImageField("whole")})
    assert read["vector"].tolist() == [0, 1, 2]
    assert read["image"].shape == (16, 16, 3)


def test_a_method_learns_from_what_it_makes_of_a_view(picture: Path) -> None:
    def prepare(view: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"image": view["image"], "count": np.array(view["tags"].sum() + view["image"].shape[-1])}

    samples = [Sample("a", picture, WeakLabels(frozenset({1, 3})))]
    images = TrainingImages(samples, [ReadTags(3)], {"tags": TAGS}, RANDOM, 0, prepare)
    item = images[Draw(0, 0, 0)]
    assert set(item) == {"image", "count"}
    assert item["count"] == 2 + 8


def test_marks_are_what_points_and_scribbles_say(picture: Path) -> None:
    labels = WeakLabels(frozenset({2}), points=(Point(0, 1, 2), Point(2, 9, 12)))
    marks = ReadMarks()(Sample("a", picture, labels))["marks"]
    assert (marks.shape, marks.dtype) == ((16, 16), np.uint8)
    assert (marks[2, 1], marks[12, 9]) == (0, 2)
    assert (marks == VOID).sum() == 16 * 16 - 2


def test_a_folder_holds_numbers_of_labels_and_shares_of_maps(picture: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    (tmp_path / "clues" / "b").mkdir(parents=True)
    Image.fromarray(grey).save(tmp_path / "clues" / "b" / "a.png")
    sample = Sample("b/a", picture)
    for follows in ("labels", "ids"):
        found = ReadFolder("clue", ImageField(follows), tmp_path / "clues")(sample)
        assert list(found) == ["clue"]
        np.testing.assert_array_equal(found["clue"], grey)
    maps = ReadFolder("clue", ImageField("maps"), tmp_path / "clues")(sample)["clue"]
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, grey[None] / 255, rtol=1e-6)


def test_augmentation_is_a_function_of_seed_epoch_and_place(picture: Path) -> None:
    def drawn(seed: int, epoch: int, place: int) -> bytes:
        images = TrainingImages([Sample("a", picture)], [], {}, RANDOM, seed)
        return images[Draw(epoch, place, 0)]["image"].numpy().tobytes()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    assert len({drawn(1, 2, 3), drawn(0, 2, 3), drawn(1, 0, 3), drawn(1, 2, 0)}) == 4


def test_the_stream_of_augmentation_is_not_that_of_the_order() -> None:
    draw = Draw(epoch=4, place=0, image=9)
    order = np.random.default_rng([7, 4])
    assert generator(7, draw).integers(2**60) != order.integers(2**60)


tags_of_images = st.lists(st.frozensets(st.integers(1, 4), max_size=3), min_size=1, max_size=25)


@given(tags=tags_of_images, per_class=st.integers(1, 6), seed=st.integers(0, 9))
def test_a_balanced_part_has_enough_of_every_class(tags: list[frozenset[int]], per_class: int, seed: int) -> None:
    samples = [Sample(str(number), Path(str(number)), WeakLabels(present)) for number, present in enumerate(tags)]
    taken = balanced_subset(samples, per_class, seed)
    numbers = [int(sample.name) for sample in taken]
    assert numbers == sorted(set(numbers)), "each once, in the order of the data set"
    assert balanced_subset(samples, per_class, seed) == taken
    for label in range(1, 5):
        there, chosen = (sum(label in s.labels.present() for s in part) for part in (samples, taken))
        assert chosen >= min(per_class, there)
    classes = set().union(*tags)
    assert len(taken) <= per_class * len(classes)
    assert all(sample.labels.present() for sample in taken)
