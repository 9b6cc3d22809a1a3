from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.files import write_npz
from weakseg.ops.activation import (
    ActivationMaps,
    Network,
    Views,
    maps_per_scale,
    multi_scale_maps,
    network_outputs,
    normalise_image,
    normalise_maps,
    resize_image,
    resize_maps,
    resize_through_view,
    stretch_maps,
)
from weakseg.ops.fields import Batch

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def brightness(batch: Batch) -> Tensor:
    """A stand-in for a network of stride 16 with two classes: bright places and dark places."""
    images = batch["image"]
    mean = F.avg_pool2d(F.pad(images, (0, -images.shape[3] % 16, 0, -images.shape[2] % 16)), 16).mean(1, keepdim=True)
    return torch.cat([mean, -mean], 1).relu()


def test_normalise_image_by_hand() -> None:
    image = np.array([[[0, 128, 255]]], np.uint8)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    result = normalise_image(image)
    assert result.shape == (3, 1, 1)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((70, 93), 0.5, (35, 46)), ((5, 7), 0.5, (2, 4)), ((1, 2), 0.25, (1, 1)), ((3, 3), 2.0, (6, 6))],
)
def test_size_of_a_scaled_image_is_rounded_half_to_even(
    size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert resize_image(picture(*size), scale).shape == (*expected, 3)


def test_scale_1_leaves_the_image_alone() -> None:
    image = picture(9, 5)
    assert np.array_equal(resize_image(image, 1.0), image)


def maps_of(network: Network, images: list[np.ndarray], scales: tuple[float, ...]) -> Tensor:
    """Maps (N, 2, h, w) of both classes of `brightness`."""
    return torch.stack(multi_scale_maps(network, Views.of(images, scales), [[1, 2]] * len(images), CPU))


def one_view_at_a_time(network: Network, image: np.ndarray, scales: tuple[float, ...], stride: int) -> Tensor:
    """The definition: each scale, as it is and mirrored, all classes, summed."""
    size = (-(-image.shape[0] // stride), -(-image.shape[1] // stride))
    total = torch.zeros(())
    for scale in scales:
        view = torch.from_numpy(normalise_image(resize_image(image, scale)))[None]
        for maps in (network({"image": view}), network({"image": view.flip(3)}).flip(3)):
            total = total + F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]
    return total


@given(data=st.data(), height=st.integers(1, 50), width=st.integers(1, 50), stride=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_maps_of_a_batch_are_those_of_its_views(data: st.DataObject, height: int, width: int, stride: int) -> None:
    labels = data.draw(st.lists(st.sampled_from([[], [1], [2], [1, 2]]), min_size=1, max_size=3))
    images = [picture(height, width, seed) for seed in range(len(labels))]
    scales = (1.0, 0.5)
    together = multi_scale_maps(brightness, Views.of(images, scales), labels, CPU, stride)
    for image, present, maps in zip(images, labels, together, strict=True):
        assert maps.dtype == torch.float32
        expected = one_view_at_a_time(brightness, image, scales, stride)
        torch.testing.assert_close(maps, expected[[label - 1 for label in present]])


def test_labels_may_come_in_any_order() -> None:
    views = Views.of([picture(20, 30)], (1.0,))
    (ascending,) = multi_scale_maps(brightness, views, [[1, 2]], CPU)
    (descending,) = multi_scale_maps(brightness, views, [[2, 1]], CPU)
    assert torch.equal(ascending, descending.flip(0))


@pytest.mark.parametrize("label", [0, 3, -1])
def test_labels_that_the_network_does_not_have(label: int) -> None:
    with pytest.raises(ValueError, match=r"not all in 1 … 2"):
        multi_scale_maps(brightness, Views.of([picture(8, 8)], (1.0,)), [[1, label]], CPU)


def test_maps_can_be_resized_in_another_way() -> None:
    """A method's own chain of resizings gets the maps of present classes, the size of the view and that of the end."""
    seen = []

    def resize(maps: Tensor, view: tuple[int, int], size: tuple[int, int]) -> Tensor:
        seen.append((tuple(maps.shape), view, size))
        larger = F.interpolate(maps, view, mode="bilinear", align_corners=True)
        return F.interpolate(larger, size, mode="bilinear", align_corners=False)

    images = [picture(32, 48, seed) for seed in range(2)]
    maps = multi_scale_maps(brightness, Views.of(images, (1.0, 0.5)), [[2], []], CPU, 1, resize)
    assert [tuple(of_image.shape) for of_image in maps] == [(1, 32, 48), (0, 32, 48)]
    assert seen == [((1, 1, 2, 3), (32, 48), (32, 48)), ((1, 1, 1, 2), (16, 24), (32, 48))]


def test_a_network_gets_a_bounded_number_of_pixels_at_once() -> None:
    shapes = []

    def network(batch: Batch) -> Tensor:
        shapes.append(tuple(batch["image"].shape))
        return batch["image"].mean((2, 3))

    images = torch.from_numpy(np.stack([picture(300, 500, seed) for seed in range(3)]))
    outputs = network_outputs(network, images, CPU, mirror=False)
    assert shapes == [(1, 3, 300, 500)] * 3
    torch.testing.assert_close(
        outputs, torch.from_numpy(np.stack([normalise_image(i.numpy()) for i in images])).mean((2, 3))
    )
    shapes.clear()
    network_outputs(network, images[:, :20, :20], CPU, mirror=False)
    assert shapes == [(3, 3, 20, 20)]


def test_networks_see_what_normalise_image_gives() -> None:
    images = np.stack([picture(5, 7, seed) for seed in range(2)])
    seen = network_outputs(lambda batch: batch["image"], torch.from_numpy(images), CPU, mirror=False)
    np.testing.assert_allclose(seen.numpy(), np.stack([normalise_image(image) for image in images]), rtol=1e-6)


def test_a_mirrored_image_has_mirrored_maps() -> None:
    image = picture(48, 64)
    scales = (1.0, 0.5, 1.5)
    mirrored = maps_of(brightness, [np.ascontiguousarray(image[:, ::-1])], scales)
    torch.testing.assert_close(mirrored, maps_of(brightness, [image], scales).flip(3))


def test_a_constant_network_counts_scales_and_mirrors() -> None:
    def constant(batch: Batch) -> Tensor:
        return torch.full((len(batch["image"]), 1, 2, 3), 0.5)

    views = Views.of([picture(21, 30)], (1.0, 0.5, 2.0))
    torch.testing.assert_close(multi_scale_maps(constant, views, [[1]], CPU), [torch.full((1, 6, 8), 3.0)])
    for maps in maps_per_scale(constant, views, CPU):
        torch.testing.assert_close(maps, torch.full((1, 1, 2, 3), 1.0))


def test_inference_records_no_gradients() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert not maps_of(lambda batch: brightness(batch) * weight, [picture(16, 16)], (1.0,)).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    images = [picture(70, 93, seed) for seed in range(3)]
    (expected, found) = (
        multi_scale_maps(brightness, Views.of(images, (1.0, 0.5), device), [[1], [], [1, 2]], device)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close([maps.cpu() for maps in found], expected)


def test_normalise_maps_by_hand() -> None:
    maps = np.array([[[1.0, 3.0]], [[0.0, 0.0]], [[2.0, 0.5]]], np.float32)
    result = normalise_maps(maps, [1, 3, 4], (3, 7))
    assert result.labels.tolist() == [1, 3, 4]
    assert result.labels.dtype == np.int16
    expected = [[[1 / 3.00001, 3 / 3.00001]], [[0, 0]], [[2 / 2.00001, 0.5 / 2.00001]]]
    np.testing.assert_allclose(result.maps, expected, rtol=1e-6)
    assert maps[0, 0, 0] == 1  # the input is left alone


def test_an_image_without_classes_has_no_maps(tmp_path: Path) -> None:
    result = normalise_maps(np.ones((0, 2, 2), np.float32), [], (8, 5))
    assert result.maps.shape == (0, 2, 2)
    result.save(tmp_path / "m.npz")
    loaded = ActivationMaps.load(tmp_path / "m.npz")
    assert loaded.labels.shape == (0,)
    assert loaded.upsampled().shape == (0, 8, 5)


@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), stride=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, height: int, width: int, stride: int
) -> None:
    labels = sorted(data.draw(st.sets(st.integers(1, 254), max_size=4)))
    shape = (len(labels), -(-height // stride), -(-width // stride))
    maps = data.draw(hnp.arrays(np.float16, shape, elements=st.floats(0, 1, width=16)))
    path = tmp_path_factory.getbasetemp() / "activation maps" / "bilder.npz"
    ActivationMaps(np.array(labels, np.int16), maps, (height, width), stride).save(path)
    loaded = ActivationMaps.load(path)
    assert (loaded.labels.tolist(), loaded.size, loaded.stride) == (labels, (height, width), stride)
    assert (loaded.labels.dtype, loaded.maps.dtype) == (np.int16, np.float16)
    np.testing.assert_array_equal(loaded.maps, maps)


@given(data=st.data(), height=st.integers(1, 20), width=st.integers(1, 20), stride=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_signed_maps_come_back_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, height: int, width: int, stride: int
) -> None:
    labels = sorted(data.draw(st.sets(st.integers(1, 254), max_size=3)))
    shape = (len(labels), -(-height // stride), -(-width // stride))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    maps = data.draw(hnp.arrays(np.float32, shape, elements=finite))
    path = tmp_path_factory.getbasetemp() / "signed.npz"
    written = normalise_maps(maps, labels, (height, width), stride, normalise=None)
    written.save(path)
    loaded = ActivationMaps.load(path)
    assert loaded.signed
    assert written.signed
    assert (loaded.labels.tolist(), loaded.size, loaded.stride) == (labels, (height, width), stride)
    assert loaded.maps.dtype == np.float32
    np.testing.assert_array_equal(loaded.maps, maps)


def test_other_maps_are_not_signed(tmp_path: Path) -> None:
    write_npz(tmp_path / "dog.npz", GOOD)
    assert not ActivationMaps.load(tmp_path / "dog.npz").signed


def test_signed_maps_stay_signed_in_smaller_cells() -> None:
    maps = ActivationMaps(np.array([1], np.int16), np.array([[[-4.0, 4.0]]], np.float32), (4, 8), 4, signed=True)
    finer = maps.at_stride(1)
    assert finer.signed
    assert finer.maps[0, 0, [0, -1]].tolist() == [-4, 4]


def bilinear(maps: np.ndarray, y: float, x: float) -> float:
    """A map (h, w) at the fractional cell (y, x), its border repeated."""
    h, w = maps.shape
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    v, u = y - top, x - left
    upper = maps[top, left] * (1 - u) + maps[top, right] * u
    lower = maps[bottom, left] * (1 - u) + maps[bottom, right] * u
    return float(upper * (1 - v) + lower * v)


@pytest.mark.parametrize(
    ("size", "stride", "finer"), [((10, 7), 4, 1), ((10, 7), 4, 2), ((4, 9), 3, 1), ((1, 1), 8, 2), ((6, 6), 1, 1)]
)
def test_finer_maps_are_bilinear_between_centres_of_cells(size: tuple[int, int], stride: int, finer: int) -> None:
    rng = np.random.default_rng(0)
    cells = rng.random((2, -(-size[0] // stride), -(-size[1] // stride))).astype(np.float32)
    maps = ActivationMaps(np.array([1, 2], np.int16), cells, size, stride)
    result = maps.at_stride(finer)
    assert (result.size, result.stride) == (size, finer)
    assert result.maps.shape == (2, -(-size[0] // finer), -(-size[1] // finer))
    assert result.maps.dtype == np.float32
    for k, y, x in np.ndindex(*result.maps.shape):
        expected = bilinear(cells[k], (y + 0.5) * finer / stride - 0.5, (x + 0.5) * finer / stride - 0.5)
        assert result.maps[k, y, x] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_array_equal(maps.upsampled(), maps.at_stride(1).maps)
    np.testing.assert_array_equal(maps.at_stride(stride).maps, cells)


GOOD: dict[str, Any] = {
    "labels": np.array([2, 5], np.int16),
    "maps": np.full((2, 3, 2), 0.5, np.float16),
    "size": np.array([10, 8], np.int32),
    "stride": np.array(4, np.int32),
}
SIGNED: dict[str, Any] = {"maps": np.full((2, 3, 2), -2.5, np.float32), "signed": np.array(True)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": None}, "it holds labels, size, stride, expected labels, maps, size, stride"),
        ({"extra": np.zeros(1)}, "it holds extra, labels"),
        ({"maps": np.zeros((2, 3, 2))}, "maps float64"),
        ({"labels": np.array(["a", "b"])}, "labels are <U1"),
        ({"size": np.array([10.0, 8.0])}, "size float64"),
        ({"size": np.array([10, 0], np.int32)}, "not two positive numbers"),
        ({"stride": np.array(0, np.int32)}, "not two positive numbers"),
        ({"stride": np.array(5, np.int32)}, "does not fit an image of [10, 8] at stride 5"),
        ({"labels": np.array([1, 2, 3], np.int16)}, "does not fit an image"),
        ({"labels": np.array(2, np.int16)}, "does not fit an image"),
        ({"labels": np.array([5, 2], np.int16)}, "[5, 2] are not ascending"),
        ({"labels": np.array([2, 2], np.int16)}, "[2, 2] are not ascending"),
        ({"labels": np.array([-1, 2], np.int16)}, "[-1, 2] are not ascending"),
        ({"labels": np.array([2, 255], np.int16)}, "[2, 255] are not ascending"),
        ({"maps": np.full((2, 3, 2), 1.5, np.float16)}, "outside 0 … 1"),
        ({"maps": np.full((2, 3, 2), np.nan, np.float16)}, "outside 0 … 1"),
        ({"maps": np.full((2, 3, 2), 0.5, np.float32)}, "maps float32"),
        ({"signed": np.array(True)}, "maps float16"),
        (SIGNED | {"maps": np.full((2, 3, 2), np.nan, np.float32)}, "not finite"),
        (SIGNED | {"maps": np.full((2, 3, 2), -np.inf, np.float32)}, "not finite"),
        (SIGNED | {"labels": np.array([5, 2], np.int16)}, "[5, 2] are not ascending"),
    ],
)
def test_load_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (GOOD | change).items() if array is not None}
    write_npz(tmp_path / "dog.npz", arrays)
    with pytest.raises(WeaksegError) as raised:
        ActivationMaps.load(tmp_path / "dog.npz")
    assert str(raised.value).startswith(f"{tmp_path / 'dog.npz'} is no file of activation maps: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("arrays", [GOOD, GOOD | SIGNED])
def test_load_accepts_what_the_bad_cases_start_from(tmp_path: Path, arrays: dict[str, Any]) -> None:
    write_npz(tmp_path / "dog.npz", arrays)
    assert ActivationMaps.load(tmp_path / "dog.npz").labels.tolist() == [2, 5]


def test_load_refuses_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", **(GOOD | {"labels": np.array([{"a": 1}], object)}))
    with pytest.raises(WeaksegError, match=r"evil\.npz is not a readable array file"):
        ActivationMaps.load(tmp_path / "evil.npz")


def test_save_refuses_what_load_would_refuse(tmp_path: Path) -> None:
    maps = ActivationMaps(np.array([1], np.int16), np.ones((1, 5, 5), np.float32), (8, 8), 4)
    with pytest.raises(ValueError, match="does not fit an image"):
        maps.save(tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_save_refuses_signed_maps_that_are_not_finite(tmp_path: Path, value: float) -> None:
    maps = normalise_maps(np.full((1, 2, 2), value, np.float32), [1], (8, 8), normalise=None)
    with pytest.raises(ValueError, match="not finite"):
        maps.save(tmp_path / "m.npz")
    assert list(tmp_path.iterdir()) == []


def test_seams_normalisation_by_hand() -> None:
    maps = np.array([[[2.0, 3.0, 6.0]], [[0.0, 0.0, 0.0]]], np.float32)
    clamped = stretch_maps(maps)
    np.testing.assert_allclose(clamped[0], [[0, 0.25, 1]], atol=1e-5)
    assert (clamped[1] == 0).all()
    # What the original gives for the least place, whose value it has set to 0 by then: -m / (M - m).
    np.testing.assert_allclose(stretch_maps(maps, clamp=False)[0], [[-0.5, 0.25, 1]], atol=1e-5)
    assert (stretch_maps(maps, clamp=False)[1] == -1).all()
    assert stretch_maps(np.zeros((0, 4, 5), np.float32)).shape == (0, 4, 5)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1), st.floats(0, 100))
def test_seams_normalisation_reaches_over_the_whole_range(k: int, h: int, w: int, seed: int, shift: float) -> None:
    maps = np.float32(shift) + np.random.default_rng(seed).random((k, h, w), np.float32)
    stretched = stretch_maps(maps)
    assert ((stretched >= 0) & (stretched <= 1)).all()
    order = np.argsort(maps.reshape(k, -1), axis=1)
    assert (np.diff(np.take_along_axis(stretched.reshape(k, -1), order, 1)) >= 0).all()
    present = normalise_maps(maps, range(1, k + 1), (h, w), 1, stretch_maps)
    np.testing.assert_array_equal(present.maps, stretched)


def test_maps_resized_through_the_view_keep_its_corners() -> None:
    maps = torch.arange(12.0).reshape(1, 1, 3, 4)
    same = resize_through_view(maps, (5, 7), (5, 7))
    assert same[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 3, 8, 11]
    larger = resize_through_view(maps, (5, 7), (10, 14))
    torch.testing.assert_close(larger, resize_maps(same, (5, 7), (10, 14)))
