"""Properties of the dense CRF; agreement with the reference is tested in tests/parity."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mean_field import softmax, step_by_step
from weakseg.errors import WeaksegError
from weakseg.ops import densecrf, densecrf_compiled, densecrf_torch
from weakseg.ops.crf_features import bilateral_features, gaussian_features
from weakseg.ops.crf_parameters import PARAMETERS, CRFParameters
from weakseg.ops.crf_problem import Problem
from weakseg.ops.crf_unary import unary_from_labels, unary_from_probabilities
from weakseg.ops.densecrf import dense_crf

SHORT = CRFParameters(3, 3, 20, 30, 5, iterations=3)


def picture(height: int = 9, width: int = 11, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Two flat regions with a little noise."""
    rng = np.random.default_rng(seed)
    image = np.where(np.arange(width)[:, None] < width // 2, 60, 180) + rng.integers(-5, 6, (height, width, channels))
    return image.astype(np.uint8)


def random_unary(labels: int, height: int = 9, width: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((labels, height, width)).astype(np.float32) * 3


@settings(max_examples=40)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 12),
    st.lists(st.integers(0, 11), max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_iteration_with_nothing_left_out(
    height: int, width: int, labels: int, copied: list[int], seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    unary = random_unary(labels, height, width, seed)
    for label in copied:  # some labels share a unary
        unary[label % labels] = unary[0]
    marginals = dense_crf(image, unary, SHORT)
    assert marginals.dtype == np.float32
    assert marginals.shape == unary.shape
    assert ((marginals >= 0) & (marginals <= 1)).all()
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(marginals, step_by_step(image, unary, SHORT), atol=1e-4)


def test_several_blocks_and_all_sizes_of_rows() -> None:
    image = picture(40, 31)
    for labels in (2, 3, 5, 6, 9, 21):
        unary = random_unary(labels, 40, 31)
        np.testing.assert_allclose(dense_crf(image, unary, SHORT), step_by_step(image, unary, SHORT), atol=1e-4)


def test_unaries_of_one_image_together_are_as_if_alone() -> None:
    image = picture()
    unaries = [random_unary(labels, seed=labels) for labels in (3, 1, 2, 6, 2)]
    unaries[3][2] = unaries[3][4] = unaries[3][0]
    unaries.append(np.zeros((4, 9, 11), np.float32))  # four labels alike
    together = dense_crf(image, unaries, SHORT)
    assert [len(q) for q in together] == [3, 1, 2, 6, 2, 4]
    for unary, marginals in zip(unaries, together, strict=True):
        np.testing.assert_allclose(marginals, dense_crf(image, unary, SHORT), atol=1e-5)
    assert dense_crf(image, [], SHORT) == []


def test_threads_and_cached_lattices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(30 + seed % 2, 40, seed=seed) for seed in range(8)]
    unaries = [random_unary(4, *image.shape[:2], seed) for seed, image in enumerate(images)]
    alone = [dense_crf(image, unary, SHORT) for image, unary in zip(images, unaries, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda pair: dense_crf(*pair, SHORT), zip(images, unaries, strict=True)))
    monkeypatch.setattr(densecrf_compiled, "MAX_CACHED_PIXELS", 0)
    for image, unary, expected, result in zip(images, unaries, alone, threaded, strict=True):
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(dense_crf(image, unary, SHORT), expected)


# Any shape, any form --------------------------------------------------------------------------------------------------


def tiny_problem(rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """An image of a few pixels, often one row or one pixel, and unaries, often with labels alike."""
    height, width = (1 if rng.random() < 0.25 else int(side) for side in rng.integers(1, 7, 2))
    image = rng.integers(0, 256, (height, width, 3), np.uint8) // int(rng.integers(1, 200))
    unaries = [
        rng.choice([0, 1, 2.5, 9], (labels, height, width)).astype(np.float32) for labels in rng.integers(1, 7, 2)
    ]
    return image, unaries[: int(rng.integers(1, 3))]


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_ten_thousand_shapes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    once = CRFParameters(iterations=1)
    for _ in range(100):
        image, unaries = tiny_problem(rng)
        for unary, marginals in zip(unaries, dense_crf(image, unaries, once), strict=True):
            assert marginals.shape == unary.shape
            assert marginals.min() >= 0
            assert abs(marginals.sum(0) - 1).max() < 1e-5


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form for other devices, on the CPU."""
    monkeypatch.setattr(densecrf, "_mean_field_on_cpu", densecrf._mean_field_on_device)


def equal_in_both_forms(
    images: list[np.ndarray], unaries: list[list[np.ndarray]], parameters: CRFParameters | str, device: str = "cpu"
) -> None:
    compiled = [dense_crf(*pair, parameters) for pair in zip(images, unaries, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(densecrf, "_mean_field_on_cpu", densecrf._mean_field_on_device)
        together = dense_crf(images, unaries, parameters, device)
    for ours, expected, of_image in zip(together, compiled, unaries, strict=True):
        assert len(ours) == len(of_image)
        for marginals, other, unary in zip(ours, expected, of_image, strict=True):
            assert (marginals.dtype, marginals.shape) == (np.float32, unary.shape)
            np.testing.assert_allclose(marginals, other, atol=1e-4)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_images_of_all_sizes_in_one_batch(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    images, unaries = zip(*(tiny_problem(rng) for _ in range(count)), strict=True)
    equal_in_both_forms(list(images), list(unaries), SHORT)


@pytest.mark.parametrize("name", PARAMETERS)
def test_both_forms_take_all_parameters_by_name(name: str) -> None:
    images = [picture(21, 30), picture(17, 9, seed=1)]
    unaries = [[random_unary(3, *image.shape[:2])] for image in images]
    equal_in_both_forms(images, unaries, name)
    np.testing.assert_array_equal(
        dense_crf(images[0], unaries[0][0], name), dense_crf(images[0], unaries[0][0], PARAMETERS[name])
    )


@pytest.mark.parametrize("most", [1, 5000])
def test_batches_are_as_large_as_memory_allows(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(densecrf_torch, "MAX_VALUES", most)
    images = [picture(6 + i, 8, seed=i) for i in range(7)]
    unaries = [[random_unary(2 + i, *image.shape[:2])] for i, image in enumerate(images)]
    batches = list(densecrf_torch._batches(images, [[Problem.of(u.reshape(len(u), -1))] for [u] in unaries]))
    assert [i for batch in batches for i in range(7)[batch]] == list(range(7))
    assert len(batches) == 7 if most == 1 else 1 < len(batches) < 7
    equal_in_both_forms(images, unaries, SHORT)


@pytest.mark.usefixtures("in_torch")
def test_torch_form_takes_what_the_compiled_one_takes() -> None:
    grey = picture(channels=1)
    np.testing.assert_allclose(
        dense_crf(grey, random_unary(3), SHORT), step_by_step(grey, random_unary(3), SHORT), atol=1e-4
    )
    impossible = random_unary(3)
    impossible[2] = np.inf
    impossible[0, 4, 5] = np.inf
    marginals = dense_crf(picture(), impossible, SHORT)
    assert (marginals[2] == 0).all()
    assert (marginals[0, 4, 5], marginals[1, 4, 5]) == (0, 1)
    assert dense_crf([], [], SHORT) == []
    assert dense_crf([picture()], [[]], SHORT) == [[]]


def test_scales_whose_keys_need_more_than_64_bits_in_both_forms() -> None:
    images = [picture(6, 8), picture(5, 5, seed=1)]
    fine = CRFParameters(1e-4, 3, 1e-3, 1e-3, 5, iterations=2)
    equal_in_both_forms(images, [[random_unary(3, *image.shape[:2])] for image in images], fine)


def test_many_images_are_as_if_alone() -> None:
    images = [picture(9 + i, 11, seed=i) for i in range(5)]
    unaries: list[Any] = [random_unary(2 + i, 9 + i, 11) for i in range(5)]
    unaries[3] = [unaries[3], random_unary(5, 12, 11, seed=1)]
    for image, unary, result in zip(images, unaries, dense_crf(images, unaries, SHORT), strict=True):
        np.testing.assert_array_equal(result, dense_crf(image, unary, SHORT))
    with pytest.raises(WeaksegError, match="5 images and 4 unaries"):
        dense_crf(images, unaries[:4], SHORT)
    with pytest.raises(WeaksegError, match='"affinity": there is no such set of CRF parameters; known: affinitynet'):
        dense_crf(images, unaries, "affinity")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    rng = np.random.default_rng(0)
    images, unaries = zip(*(tiny_problem(rng) for _ in range(100)), strict=True)
    equal_in_both_forms(list(images), list(unaries), "affinitynet", "cuda")


def marginals_in_worker(seed: int) -> np.ndarray:
    return dense_crf(picture(seed=seed), random_unary(3, seed=seed), SHORT)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_works_in_loader_processes_started_after_it_ran(method: str) -> None:
    expected = [marginals_in_worker(seed) for seed in range(4)]
    loader = DataLoader(
        range(4),  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=marginals_in_worker,
        num_workers=1,
        multiprocessing_context=method,
    )
    for marginals, alone in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(marginals, alone)


FIRST_CALLS = """
import multiprocessing
import sys
import numpy as np
from weakseg.ops import densecrf_compiled
from weakseg.ops.densecrf import dense_crf

def marginals(barrier):
    barrier.wait()
    rng = np.random.default_rng(0)
    image, unary = rng.integers(0, 256, (5, 6, 3), np.uint8), rng.random((2, 5, 6), np.float32)
    return dense_crf(image, unary)

def worker(barrier, queue):
    queue.put(marginals(barrier))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=worker, args=(barrier, queue)) for _ in range(2)]
    for process in workers:
        process.start()
    first, second = (queue.get(timeout=500) for _ in workers)
    for process in workers:
        process.join()
        assert process.exitcode == 0
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, marginals(context.Barrier(1)))
    assert not densecrf_compiled._iterate.stats.cache_misses
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_compile_at_the_same_time(method: str, tmp_path: Path) -> None:
    """Their first calls, with nothing compiled yet, give the same, and the next process finds the compiled code."""
    script = tmp_path / "first_calls.py"
    script.write_text(FIRST_CALLS)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, str(script), method], env=environment, check=True, timeout=600)


def test_pulls_labels_to_the_edges_of_the_image() -> None:
    image = picture(20, 30)
    truth = np.broadcast_to(np.arange(30) >= 15, (20, 30)).astype(np.uint8)
    noisy = np.where(np.random.default_rng(0).random(truth.shape) < 0.2, 1 - truth, truth)
    shifted = np.roll(noisy, 2, axis=1)
    refined = dense_crf(image, unary_from_labels(shifted, 2, 0.7), PARAMETERS["affinitynet"]).argmax(0)
    assert (shifted == truth).mean() < 0.8
    np.testing.assert_array_equal(refined, truth)


def test_labels_are_interchangeable() -> None:
    image, unary, order = picture(), random_unary(5), [3, 0, 4, 1, 2]
    np.testing.assert_allclose(dense_crf(image, unary[order], SHORT), dense_crf(image, unary, SHORT)[order], atol=1e-5)


def test_constants_of_a_pixel_do_not_matter() -> None:
    image, unary = picture(), random_unary(3)
    shifted = unary + np.arange(99, dtype=np.float32).reshape(9, 11) / 8
    np.testing.assert_allclose(dense_crf(image, shifted, SHORT), dense_crf(image, unary, SHORT), atol=1e-4)
    uniform = dense_crf(image, np.full((7, 9, 11), 2.5), SHORT)
    np.testing.assert_allclose(uniform, 1 / 7, atol=1e-6)


@pytest.mark.parametrize("iterations", [0, -3])
def test_without_iterations_or_weights_it_is_the_softmax(iterations: int) -> None:
    image, unary = picture(), random_unary(4)
    without = CRFParameters(iterations=iterations)
    np.testing.assert_allclose(dense_crf(image, unary, without), softmax(-unary), atol=1e-6)
    weightless = CRFParameters(gaussian_weight=0, bilateral_weight=0)
    np.testing.assert_allclose(dense_crf(image, unary, weightless), softmax(-unary), atol=1e-6)


def test_impossible_labels_stay_impossible() -> None:
    image, unary = picture(), random_unary(3)
    unary[2] = np.inf
    unary[0, 4, 5] = np.inf
    marginals = dense_crf(image, unary, SHORT)
    assert (marginals[2] == 0).all()
    assert (marginals[0, 4, 5], marginals[1, 4, 5]) == (0, 1)
    np.testing.assert_allclose(marginals[:2], dense_crf(image, unary[:2], SHORT), atol=1e-5)


def test_unlikely_labels_do_not_underflow_to_nonsense() -> None:
    unary = random_unary(3)
    unary[1] += 5000
    marginals = dense_crf(picture(), unary, SHORT)
    assert np.isfinite(marginals).all()
    assert marginals[1].max() < 1e-30


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_layout_and_number_of_channels(channels: int) -> None:
    image = picture(channels=channels)
    unary = random_unary(3)
    expected = step_by_step(image, unary, SHORT)
    strided = np.asfortranarray(image)
    strided.setflags(write=False)
    reversed_twice = unary[::-1].astype(np.float64)[::-1]
    np.testing.assert_allclose(dense_crf(strided, reversed_twice, SHORT), expected, atol=1e-4)


def test_anisotropic_scales_are_x_first() -> None:
    wide = gaussian_features(2, 3, (2, 5))
    np.testing.assert_allclose(wide[:, 0], [0, 0.5, 1, 0, 0.5, 1])
    np.testing.assert_allclose(wide[:, 1], [0, 0, 0, 0.2, 0.2, 0.2])
    image = picture(2, 3)
    colours = bilateral_features(image, 1, (1, 2, 4))
    np.testing.assert_allclose(colours[:, 2:], image.reshape(-1, 3) / np.array([1, 2, 4]))


@pytest.mark.parametrize(
    ("image", "unary", "message"),
    [
        (picture().astype(np.float32), random_unary(2), r"8-bit.*not float32 \(9, 11, 3\).*not normalised"),
        (picture()[..., 0], random_unary(2), r"not uint8 \(9, 11\)"),
        (np.zeros((0, 11, 3), np.uint8), random_unary(2, 0), "image is empty"),
        (picture(), random_unary(2, 11, 9), r"unary has shape \(2, 11, 9\).*\(labels, 9, 11\)"),
        (picture(), np.zeros((0, 9, 11)), r"unary has shape \(0, 9, 11\)"),
        (picture(), random_unary(2).reshape(2, -1), r"unary has shape \(2, 99\)"),
    ],
)
def test_wrong_shapes_and_types_are_named(image: np.ndarray, unary: np.ndarray, message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        dense_crf(image, unary)


@pytest.mark.parametrize(
    ("value", "labels", "message"),
    [
        (np.nan, 1, r"nan at \(label, y, x\) = index \(1, 4, 7\)"),
        (-np.inf, 1, r"-inf at \(label, y, x\) = index \(1, 4, 7\)"),
        (np.inf, slice(None), r"Every label is impossible \(\+inf\) at \(y, x\) = index \(4, 7\)"),
    ],
)
def test_numbers_that_mean_nothing_are_found(value: float, labels: Any, message: str) -> None:
    unary = random_unary(3)
    unary[labels, 4, 7] = value
    with pytest.raises(WeaksegError, match=message):
        dense_crf(picture(), unary)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaussian_sxy": 0}, "gaussian_sxy is 0; it has to be positive"),
        ({"bilateral_sxy": (80, -1)}, r"bilateral_sxy is \(80, -1\)"),
        ({"bilateral_srgb": float("nan")}, "bilateral_srgb is nan"),
        ({"gaussian_weight": float("inf")}, "gaussian_weight is inf"),
    ],
)
def test_wrong_parameters_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        CRFParameters(**options)


def test_scales_have_as_many_numbers_as_the_image() -> None:
    with pytest.raises(WeaksegError, match=r"scale \(1, 2\) has 2 numbers; 3 \(or one for all\)"):
        dense_crf(picture(), random_unary(2), CRFParameters(bilateral_srgb=(1, 2)))
    with pytest.raises(WeaksegError, match="Choose larger scales"):
        dense_crf(picture(), random_unary(2), CRFParameters(gaussian_sxy=1e-7))


def test_unary_of_probabilities() -> None:
    p = np.array([[0.25, 0, -0.5, 1.5], [0.75, 1, 0.5, 0.5]])
    np.testing.assert_allclose(np.exp(-unary_from_probabilities(p)), [[0.25, 1e-5, 1e-5, 1], [0.75, 1, 0.5, 0.5]], 1e-6)
    with pytest.raises(WeaksegError, match=r"NaN, first at index \(0, 1\)"):
        unary_from_probabilities(np.array([[1, np.nan]]))
    with pytest.raises(WeaksegError, match="logarithms"):
        unary_from_probabilities(np.log(p.clip(0.1, 1)))


def test_unary_of_labels() -> None:
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    p = np.exp(-unary_from_labels(labels, 3, 0.7))
    np.testing.assert_allclose(p[:, 0, 1], [0.15, 0.7, 0.15], rtol=1e-6)
    np.testing.assert_allclose(p[:, 0, 3], 1 / 3, rtol=1e-6)


def test_a_single_label_is_certain() -> None:
    unary = unary_from_labels(np.zeros((9, 11), np.uint8), 1, 0.7)
    np.testing.assert_array_equal(dense_crf(picture(), unary), 1)


@pytest.mark.parametrize(
    ("labels", "n", "options", "message"),
    [
        (np.array([[0, 3]], np.uint8), 3, {}, r"Label 3 at index \(0, 1\) is none of the 3 labels: 0 to 2 or 255"),
        (np.array([[-1]]), 3, {}, "Label -1"),
        (np.array([[0]]), 0, {}, "at least one label, not 0"),
        (np.array([[0]]), 2, {"certainty": 1.0}, "certainty of hard labels is 1.0"),
        (np.array([[0.5]]), 2, {}, "whole numbers, not float64"),
    ],
)
def test_wrong_labels_are_named(labels: np.ndarray, n: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        unary_from_labels(labels, n, **{"certainty": 0.7, **options})
