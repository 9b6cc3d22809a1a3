from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from views import augmented, augmented_image
from weakseg.data.opencv import scale_cubic, scale_nearest, shift_hsv
from weakseg.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Crop,
    Style,
    View,
    crop,
    jitter_colours,
    longer_side_size,
    normalised_crop,
    random_crop,
    resize_image,
    scaled_size,
    top_left_crop,
)
from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.ops.activation import normalise_image
from weakseg.ops.fields import GEOMETRY, ImageField
from weakseg.settings import validate

SIDES = st.integers(1, 50)
STYLES = st.sampled_from(["pillow", "torch"])


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose pixels say where they are, and a label map that agrees with its first channel."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, rows], axis=-1), rows


def denormalised(view: np.ndarray) -> np.ndarray:
    """(3, H, W) normalised to (H, W, 3) in [0, 255]."""
    return 255 * (view.transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(8, 60), STYLES, st.integers(0, 99))
def test_image_and_labels_stay_together(height: int, width: int, side: int, style: Style, seed: int) -> None:
    image, labels = coordinates(height, width)
    augmentation = Augmentation(style=style, crop=side)
    view, label_view = augmented(augmentation, image, labels, np.random.default_rng(seed))
    assert view.shape == (3, side, side)
    assert view.dtype == np.float32
    assert label_view.shape == (side, side)
    assert label_view.dtype == np.uint8
    inside = label_view != VOID
    assert inside.sum() == min(height, side) * min(width, side)
    assert np.all(view[:, ~inside] == 0)
    np.testing.assert_allclose(denormalised(view)[inside][:, 0], label_view[inside], atol=1e-3)


@pytest.mark.parametrize("style", ["pillow", "torch"])
@pytest.mark.parametrize("factor", [0.5, 0.83, 1.5])
def test_scaled_image_and_labels_have_their_edges_at_the_same_place(style: Style, factor: float) -> None:
    labels = np.zeros((64, 90), np.uint8)
    labels[20:50, 30:70] = 1
    image = np.repeat(labels[..., None] * 255, 3, axis=-1)
    augmentation = Augmentation(style=style, scale_choices=(factor,), crop=150)
    for seed in range(4):
        view, label_view = augmented(augmentation, image, labels, np.random.default_rng(seed))
        inside = label_view != VOID
        differs = inside & ((denormalised(view)[..., 0] > 127.5) != (label_view == 1))
        assert differs.sum() <= 0.02 * inside.sum()
        assert (label_view == 1).sum() == pytest.approx(30 * 40 * factor**2, rel=0.1)


def test_the_same_randomness_gives_the_same_view_and_another_another() -> None:
    image, _ = coordinates(60, 80)
    augmentation = Augmentation(resize_long=(50, 90), scale_range=(0.5, 1.5), crop=40)
    first, again, other = (augmented_image(augmentation, image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


FIELDS = {
    "clues": ImageField("labels", outside=77),
    "segments": ImageField("ids"),
    "maps": ImageField("maps"),
    "vector": ImageField("whole"),
    "place": GEOMETRY,
}


def with_fields(height: int, width: int) -> dict[str, np.ndarray]:
    """`coordinates` and fields that say the same: `clues` rows, `maps` rows and columns, `segments` pixels."""
    image, rows = coordinates(height, width)
    columns = image[..., 1]
    return {
        "image": image,
        "clues": rows,
        "segments": rows.astype(np.int32) * width + columns,
        "maps": np.stack([rows, columns]).astype(np.float16),
        "vector": np.array([3.0, 1.0, 2.0]),
    }


def centres_in_image(geometry: np.ndarray, side: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where in an image of `size` the centres of a view's pixels lie, in pixels from its upper left corner."""
    top, left, bottom, right, mirrored = geometry.astype(np.float64)
    parts = (np.arange(side) + 0.5) / side
    across = parts[::-1] if mirrored else parts
    return (top + parts * (bottom - top)) * size[0], (left + across * (right - left)) * size[1]


ALL_STYLES = st.sampled_from(["pillow", "torch", "opencv_cubic"])


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(8, 60), ALL_STYLES, st.integers(0, 99))
def test_fields_of_every_kind_follow_their_pixels(height: int, width: int, side: int, style: Style, seed: int) -> None:
    arrays = with_fields(height, width)
    view = Augmentation(style=style, crop=side)(arrays, FIELDS, np.random.default_rng(seed))
    assert list(view) == ["image", *FIELDS]
    assert view["vector"] is arrays["vector"]

    y, x = centres_in_image(view["place"], side, (height, width))
    rows, columns = np.floor(y[:, None]).repeat(side, 1), np.floor(x[None]).repeat(side, 0)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    assert inside.sum() == min(height, side) * min(width, side)
    for channel, expected in enumerate((rows, columns, rows)):
        np.testing.assert_allclose(denormalised(view["image"])[inside][:, channel], expected[inside], atol=1e-3)
    np.testing.assert_array_equal(view["clues"], np.where(inside, rows, 77))
    np.testing.assert_array_equal(view["segments"], np.where(inside, rows * width + columns, height * width))
    np.testing.assert_array_equal(view["maps"], np.where(inside, [rows, columns], 0))
    kinds = {name: view[name].dtype for name in ("clues", "segments", "maps", "place")}
    assert kinds == {"clues": np.uint8, "segments": np.int32, "maps": np.float32, "place": np.float32}


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(8, 60), STYLES, st.floats(0.3, 3), st.integers(0, 99))
def test_scaled_fields_are_at_the_place_that_the_geometry_tells(
    height: int, width: int, side: int, style: Style, factor: float, seed: int
) -> None:
    arrays = with_fields(height, width)
    augmentation = Augmentation(style=style, crop=side, scale_choices=(factor,))
    view = augmentation(arrays, FIELDS, np.random.default_rng(seed))
    y, x = centres_in_image(view["place"], side, (height, width))
    inside = (y[:, None] > 0) & (y[:, None] < height) & (x[None] > 0) & (x[None] < width)
    assert inside.any()
    np.testing.assert_array_equal(view["clues"] != 77, inside)
    # A label is that of the pixel around the centre; a map without curvature is what it is between centres of pixels.
    distance = np.abs(view["clues"] + 0.5 - y[:, None])
    assert distance[inside].max() <= 0.5 + 1e-4
    rows, columns = (np.clip(place - 0.5, 0, length - 1) for place, length in ((y, height), (x, width)))
    expected = np.where(inside, np.stack(np.meshgrid(rows, columns, indexing="ij")), 0)
    np.testing.assert_allclose(view["maps"], expected, atol=2e-3)


def test_the_geometry_of_a_crop_and_of_a_smaller_image() -> None:
    image, _ = coordinates(8, 16)
    view = View((8, 16), Crop(4, top=2, left=8, crop_top=0, crop_left=0, height=4, width=4), mirrored=False)
    assert view.geometry().tolist() == [0.25, 0.5, 0.75, 0.75, 0]
    around = View((8, 16), Crop(32, top=0, left=0, crop_top=8, crop_left=16, height=8, width=16), mirrored=True)
    assert around.geometry().tolist() == [-1, -1, 3, 1, 1]
    place = Augmentation(style="torch", crop=16, mirror=False)(
        {"image": image}, {"place": GEOMETRY}, np.random.default_rng(0)
    )
    assert place["place"].tolist() == [0, 0, 2, 1, 0]


def test_labels_do_not_influence_the_image() -> None:
    image, labels = coordinates(60, 80)
    augmentation = Augmentation(scale_range=(0.5, 1.5), crop=40)
    with_labels, _ = augmented(augmentation, image, labels, np.random.default_rng(3))
    without = augmented_image(augmentation, image, np.random.default_rng(3))
    assert np.array_equal(with_labels, without)


def test_numbers_are_drawn_in_the_documented_order() -> None:
    image, _ = coordinates(60, 80)
    augmentation = Augmentation(resize_long=(100, 120), scale_range=(1.0, 1.5), crop=40)
    view = augmented_image(augmentation, image, np.random.default_rng(5))

    rng = np.random.default_rng(5)
    size = longer_side_size((60, 80), int(rng.integers(100, 121)))
    size = scaled_size(size, rng.uniform(1.0, 1.5))
    left, top = rng.integers(size[1] - 40 + 1), rng.integers(size[0] - 40 + 1)
    expected = normalise_image(resize_image(image, size)[top : top + 40, left : left + 40])
    if rng.random() < 0.5:
        expected = expected[..., ::-1]
    np.testing.assert_allclose(view, expected, atol=1e-6)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 60), STYLES, st.integers(0, 20))
def test_crops_lie_inside_and_are_as_large_as_possible(
    height: int, width: int, side: int, style: Style, seed: int
) -> None:
    place = random_crop((height, width), side, style, np.random.default_rng(seed))
    assert (place.height, place.width) == (min(height, side), min(width, side))
    for begin, crop_begin, extent, length in [
        (place.top, place.crop_top, place.height, height),
        (place.left, place.crop_left, place.width, width),
    ]:
        assert 0 <= begin <= length - extent
        assert 0 <= crop_begin <= side - extent
        assert begin == 0 or crop_begin == 0


def test_every_place_is_drawn() -> None:
    rng = np.random.default_rng(0)
    larger = {random_crop((7, 9), 5, "pillow", rng)[1:3] for _ in range(500)}
    assert larger == {(top, left) for top in range(3) for left in range(5)}
    smaller = {random_crop((2, 3), 4, "pillow", rng)[3:5] for _ in range(500)}
    assert smaller == {(top, left) for top in range(3) for left in range(2)}
    assert {random_crop((2, 3), 4, "torch", rng)[3:5] for _ in range(50)} == {(0, 0)}


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 60))
def test_normalising_and_cropping_commute(height: int, width: int, side: int) -> None:
    image, _ = coordinates(height, width)
    place = random_crop((height, width), side, "pillow", np.random.default_rng(0))
    expected = crop(normalise_image(image).transpose(1, 2, 0), place, 0).transpose(2, 0, 1)
    np.testing.assert_allclose(normalised_crop(image, place), expected, atol=1e-6)


def test_top_left_crop() -> None:
    _, labels = coordinates(5, 9)
    cut = crop(labels, top_left_crop((5, 9), 7), VOID)
    assert np.array_equal(cut[:5], labels[:, :7])
    assert np.all(cut[5:] == VOID)


def test_mirrored_half_of_the_time_and_never_without() -> None:
    image, _ = coordinates(8, 8)
    plain = normalise_image(image)
    rng = np.random.default_rng(0)
    turned, straight = Augmentation(crop=8), Augmentation(crop=8, mirror=False)
    mirrored = [np.allclose(augmented_image(turned, image, rng), plain[..., ::-1], atol=1e-5) for _ in range(200)]
    assert 70 < sum(mirrored) < 130
    assert all(np.allclose(augmented_image(straight, image, rng), plain, atol=1e-5) for _ in range(9))


def test_sizes() -> None:
    assert scaled_size((5, 9), 0.5) == (2, 4)  # 2.5 and 4.5, half to even
    assert scaled_size((7, 9), 0.5, "torch") == (3, 4)
    assert scaled_size((1, 100), 0.2) == (1, 20)
    assert scaled_size((1, 100), 0.2, "torch") == (1, 20)
    assert longer_side_size((375, 500), 333) == (250, 333)
    assert longer_side_size((375, 500), 333, "torch") == (249, 333)
    assert longer_side_size((1000, 1), 320) == (320, 1)


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 400), STYLES)
def test_the_longer_side_is_what_was_asked_for(height: int, width: int, target: int, style: Style) -> None:
    assert max(longer_side_size((height, width), target, style)) == target


@pytest.mark.parametrize("style", ["pillow", "torch"])
def test_resizing_keeps_a_constant_image(style: Style) -> None:
    image = np.full((13, 8, 3), 77, np.uint8)[:, ::-1]  # a view, as mirroring makes them
    resized = resize_image(image, (29, 5), style)
    assert resized.shape == (29, 5, 3)
    np.testing.assert_allclose(resized, 77, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale_range": [1.5, 0.5]}, "train.augment.scale_range: the lower end of the range comes first"),
        ({"scale_range": [0.5, 1], "scale_choices": [1]}, "set scale_range or scale_choices, not both"),
        ({"scale_range": ["a", 1.0]}, "train.augment.scale_range[0]: expected a number"),
        ({"scale_range": [1.0, float("inf")]}, "train.augment.scale_range[1]: expected a"),
        ({"crop": 0}, "train.augment.crop: expected a number of 8 or more"),
        ({"scale_choices": []}, "train.augment.scale_choices: "),
        ({"resize_lon": [320, 640]}, 'train.augment.resize_lon: unknown setting. Did you mean "resize_long"?'),
    ],
)
def test_wrong_settings_are_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError) as error:
        validate(Augmentation, values, "train.augment")
    assert message in str(error.value)


def test_one_scale_may_be_given_as_a_number() -> None:
    assert validate(Augmentation, {"scale_choices": 1.5}, "").scale_choices == (1.5,)
    assert validate(Augmentation, {"scale_range": [0.5, 1.5]}, "").model_dump(mode="json")["scale_range"] == [0.5, 1.5]


def test_jitter_of_one_thing_at_a_time() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 11, 3), np.uint8)
    still = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}

    def jittered(**change: float) -> np.ndarray:
        return jitter_colours(image, **{**still, **change}).astype(float)

    assert np.abs(jittered() - image).max() <= 8  # through HSV of 8 bits and back
    brighter = np.clip(1.3 * image.astype(float), 0, 255)
    assert np.abs(jittered(brightness=1.3) - brighter).max() <= 8
    grey = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(jittered(saturation=0.0) - grey[..., None]).max() <= 2
    flat = jittered(contrast=0.0)
    assert np.abs(flat - grey.mean()).max() <= 2
    # A third of the circle makes red green, green blue and blue red.
    assert np.abs(jittered(hue=1 / 3) - image[..., [2, 0, 1]]).max() <= 16


def test_jitter_depends_on_its_order() -> None:
    image = np.random.default_rng(1).integers(0, 256, (9, 11, 3), np.uint8)
    changes = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.3, "hue": 0.05}
    assert not np.array_equal(
        jitter_colours(image, **changes, order=(0, 1, 2, 3)), jitter_colours(image, **changes, order=(3, 2, 1, 0))
    )


@pytest.mark.parametrize(("style", "colour"), [("pillow", "jitter"), ("opencv_cubic", "hsv_shift")])
def test_colour_changes_the_image_and_nothing_else(style: Any, colour: Any) -> None:
    rng = np.random.default_rng(2)
    image, labels = rng.integers(0, 256, (40, 30, 3), np.uint8), rng.integers(0, 5, (40, 30)).astype(np.uint8)
    plain = Augmentation(style=style, scale_range=(0.8, 1.2), crop=24)
    coloured = plain.model_copy(update={"colour": colour})
    views = [
        augmented(augmentation, image, labels, np.random.default_rng(3)) for augmentation in (plain, coloured, coloured)
    ]
    assert not np.array_equal(views[0][0], views[1][0])
    np.testing.assert_array_equal(views[1][0], views[2][0])
    np.testing.assert_array_equal(views[0][1], views[1][1])


def test_hue_goes_round_the_circle_and_grey_has_none() -> None:
    colours = np.array([[[200, 100, 50], [10, 250, 30], [77, 77, 77], [0, 0, 0]]], np.uint8)
    np.testing.assert_allclose(shift_hsv(colours, 180, 0, 0).astype(int), colours, atol=4)  # hues are 2° apart
    turned = shift_hsv(colours, 60, 0, 0)  # 120°: red to green to blue
    np.testing.assert_allclose(turned[0, :2].astype(int), colours[0, :2][:, [2, 0, 1]], atol=4)
    np.testing.assert_array_equal(turned[0, 2:], colours[0, 2:])
    np.testing.assert_array_equal(shift_hsv(colours, 0, 0, -300), 0)


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.3, 3))
def test_scaling_like_opencv_keeps_a_flat_image_flat(height: int, width: int, factor: float) -> None:
    size = scaled_size((height, width), factor, "opencv_cubic")
    flat = np.full((height, width, 3), 93, np.uint8)
    assert np.array_equal(scale_cubic(flat, size, factor), np.full((*size, 3), 93, np.uint8))
    assert np.array_equal(scale_nearest(flat[..., 0], size, factor), np.full(size, 93, np.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"style": "opencv_cubic", "resize_long": (32, 64)}, "the style opencv_cubic knows scale_range alone"),
        ({"style": "torch", "colour": "jitter"}, "colour needs images of 8 bits"),
        ({"colour": "sepia"}, "colour"),
    ],
)
def test_settings_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        validate(Augmentation, values, "augment")
