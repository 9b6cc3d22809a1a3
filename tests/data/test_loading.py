"""What the networks are fed with. The order of images is tested with the training loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from weakseg.data.dataset import Sample
from weakseg.data.loading import Draw, MaskedImages, TaggedImages, balanced_subset, generator
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.labels import Box, Point, WeakLabels

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
    images = TaggedImages(samples, 5, AS_IT_IS, seed=0)
    assert len(images) == 2
    assert images[Draw(0, 0, 0)]["tags"].tolist() == [1, 0, 0, 1, 0]
    assert images[Draw(0, 0, 1)]["tags"].tolist() == [0, 0, 0, 0, 0]
    assert images[Draw(0, 0, 0)]["image"].shape == (3, 16, 16)


def test_labels_go_with_their_pixels(picture: Path) -> None:
    """The mask is made from the image's first channel, so it must be found there after every augmentation."""
    red = np.asarray(Image.open(picture))[..., 0]
    images = MaskedImages([Sample("a", picture)], lambda sample: red, AS_IT_IS, seed=0)
    item = images[Draw(0, 0, 0)]
    normalised = (red / 255 - 0.485) / 0.229
    np.testing.assert_allclose(item["image"][0].numpy(), normalised, atol=1e-4)
    np.testing.assert_array_equal(item["labels"].numpy(), red)


def test_a_mask_of_another_size_is_an_error_that_names_the_image(picture: Path) -> None:
    images = MaskedImages([Sample("a", picture)], lambda sample: np.zeros((4, 9), np.uint8), RANDOM, seed=0)
    with pytest.raises(WeaksegError, match=r"The mask of .*picture\.png has 9×4 pixels, the image 16×16\."):
        images[Draw(0, 0, 0)]


def test_augmentation_is_a_function_of_seed_epoch_and_place(picture: Path) -> None:
    def drawn(seed: int, epoch: int, place: int) -> bytes:
        images = TaggedImages([Sample("a", picture, WeakLabels(frozenset()))], 1, RANDOM, seed)
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
