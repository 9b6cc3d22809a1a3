"""Fields follow their image to any size and into the mirror, on their own and on the way through a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weakseg.ops.activation import IMAGENET_MEAN, IMAGENET_STD, Views, maps_per_scale, network_outputs
from weakseg.ops.fields import GEOMETRY, Batch, ImageField, as_seen
from weakseg.ops.segmentation import multi_scale_probabilities

FIELDS = {
    "vector": ImageField("whole", at_inference=True),
    "clues": ImageField("labels", at_inference=True),
    "segments": ImageField("ids", at_inference=True),
    "scores": ImageField("maps", at_inference=True),
    "place": GEOMETRY,
}
SPATIAL = [name for name, field in FIELDS.items() if field.spatial]


def random_values(height: int, width: int, images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width)
    size = (images, height, width)
    return {
        "image": torch.zeros(images, 3, height, width),
        "vector": torch.randn(images, 7, generator=generator),
        "clues": torch.randint(256, size, generator=generator).to(torch.uint8),
        "segments": torch.randint(10_000, size, generator=generator).int(),
        "scores": torch.rand(images, 2, height, width, generator=generator),
    }


def test_what_is_spatial_has_the_size_of_the_image() -> None:
    assert SPATIAL == ["clues", "segments", "scores"]


sides = st.integers(1, 12)


@given(height=sides, width=sides)
def test_at_the_same_size_nothing_changes_and_two_mirrors_are_none(height: int, width: int) -> None:
    values = random_values(height, width)
    seen = as_seen(FIELDS, values, (height, width), mirrored=False)
    once = as_seen(FIELDS, values, (height, width), mirrored=True)
    twice = as_seen(FIELDS, {**values, **once}, (height, width), mirrored=True)
    assert list(seen) == list(FIELDS)
    for name in SPATIAL:
        assert torch.equal(seen[name], values[name])
        assert torch.equal(once[name], values[name].flip(-1))
        assert torch.equal(twice[name], values[name])


@given(height=sides, width=sides, factor=st.integers(1, 4), mirrored=st.booleans())
def test_numbers_are_those_of_the_pixel_below(height: int, width: int, factor: int, mirrored: bool) -> None:
    values = random_values(height, width)
    larger = as_seen(FIELDS, values, (height * factor, width * factor), mirrored=mirrored)
    for name in ("clues", "segments"):
        expected = values[name].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert larger[name].dtype == values[name].dtype
        assert torch.equal(larger[name], expected.flip(-1) if mirrored else expected)
    # An odd factor has a pixel in the middle.
    smaller = as_seen(FIELDS, {**values, **larger}, (height, width), mirrored=mirrored)
    if factor % 2:
        assert all(torch.equal(smaller[name], values[name]) for name in ("clues", "segments"))


@given(height=sides, width=sides, mirrored=st.booleans())
def test_maps_are_bilinear(height: int, width: int, mirrored: bool) -> None:
    values = random_values(2 * height, 2 * width)
    seen = as_seen(FIELDS, values, (height, width), mirrored=mirrored)["scores"]
    expected = values["scores"].unflatten(2, (height, 2)).unflatten(4, (width, 2)).mean((3, 5))
    torch.testing.assert_close(seen, expected.flip(-1) if mirrored else expected)


@given(height=sides, width=sides, mirrored=st.booleans())
def test_what_has_no_place_stays_and_a_whole_image_is_seen_from_0_to_1(height: int, width: int, mirrored: bool) -> None:
    values = random_values(height, width)
    seen = as_seen(FIELDS, values, (5, 6), mirrored=mirrored)
    assert torch.equal(seen["vector"], values["vector"])
    assert seen["place"].tolist() == [[0, 0, 1, 1, float(mirrored)]] * 2


# Through a network ----------------------------------------------------------------------------------------------------


def pictures(count: int, height: int, width: int) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]]]:
    """Images and their fields, which say the same: red is `clues` and `segments` and, less 100, the map; all pixels of
    an image are its number in blue, like its vector."""
    rng = np.random.default_rng(0)
    images, values = [], []
    for number in range(count):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[..., 2] = number
        red = image[..., 0]
        images.append(image)
        values.append(
            {
                "clues": red,
                "segments": red.astype(np.int32),
                "scores": red[None].astype(np.float32) - 100,
                "vector": np.array([number], np.float32),
            }
        )
    return images, values


def colours(batch: Batch) -> Tensor:
    """The images of a batch as they were, (N, 3, H, W) in 0 … 255."""
    mean, std = (torch.from_numpy(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((batch["image"] * std + mean) * 255).round()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("size", "one_by_one"), [((7, 10), False), ((300, 500), True)])
def test_each_image_is_seen_with_its_own_fields(mirror: bool, size: tuple[int, int], one_by_one: bool) -> None:
    """All at once, in several parts, and mirrored together."""
    calls = []

    def differences(batch: Batch) -> Tensor:
        calls.append(len(batch["image"]))
        red, _, blue = colours(batch).unbind(1)
        number = batch["vector"][:, :, None]
        away = [batch["clues"] - red, batch["segments"] - red, batch["scores"][:, 0] + 100 - red, number - blue]
        return torch.stack(away, 1).abs()

    images, values = pictures(3, *size)
    views = Views.of(images, (1.0,), fields=FIELDS, values=values)
    found = network_outputs(differences, views.scaled[0], "cpu", mirror=mirror, views=views)
    assert found.shape == (3, 4, *size)
    assert not found.any()
    count = 6 if mirror else 3
    assert calls == ([1] * count if one_by_one else [count])


def test_fields_have_the_size_of_the_view() -> None:
    images, values = pictures(2, 6, 8)
    views = Views.of(images, (1.0, 3.0, 0.5), fields=FIELDS, values=values)

    def scores(batch: Batch) -> Tensor:
        assert batch["clues"].shape == batch["segments"].shape == batch["image"][:, 0].shape
        return batch["scores"]

    together = {name: torch.from_numpy(np.stack([of_image[name] for of_image in values])) for name in values[0]}
    for maps, size in zip(maps_per_scale(scores, views, "cpu"), [(6, 8), (18, 24), (3, 4)], strict=True):
        (expected,) = as_seen({"scores": FIELDS["scores"]}, together, size, mirrored=False).values()
        torch.testing.assert_close(maps, 2 * expected)


def test_the_mirror_is_told_to_the_network() -> None:
    images, _ = pictures(2, 6, 8)
    views = Views.of(images, (1.0,), fields={"place": GEOMETRY})
    found = network_outputs(
        lambda batch: batch["place"][..., None, None], views.scaled[0], "cpu", mirror=True, views=views
    )
    assert found[..., 0, 0].tolist() == [[0, 0, 2, 2, 1]] * 2, "the sum of both"


@pytest.mark.parametrize("mirror", [False, True])
def test_segmenters_get_fields_as_well(mirror: bool) -> None:
    images, values = pictures(2, 6, 8)
    pairs = [{"scores": np.concatenate([v["scores"], -v["scores"]]) / 100} for v in values]
    views = Views.of(images, (1.0,), fields={"scores": FIELDS["scores"]}, values=pairs)
    found = list(multi_scale_probabilities(lambda batch: batch["scores"], views, mirror=mirror))
    for probabilities, pair in zip(found, pairs, strict=True):
        torch.testing.assert_close(probabilities, torch.from_numpy(pair["scores"]).softmax(0))


def test_without_fields_networks_see_images_alone() -> None:
    seen: list[Any] = []

    def network(batch: Batch) -> Tensor:
        seen.append(list(batch))
        return batch["image"]

    images, _ = pictures(1, 4, 4)
    views = Views.of(images, (1.0,))
    network_outputs(network, views.scaled[0], "cpu", mirror=True, views=views)
    network_outputs(network, views.scaled[0], "cpu", mirror=True)
    assert seen == [["image"], ["image"]]
