"""Superpixels against the reference (superpixels.md, "Golden vectors")."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from reference import agrees
from weakseg.data.images import read_superpixels, write_superpixels
from weakseg.models.vgg import VGG16
from weakseg.ops.activation import IMAGENET_MEAN, IMAGENET_STD
from weakseg.ops.superpixels import (
    gaussian_taps,
    graph_segments,
    merge_segments,
    renumbered,
    segment_features,
    smoothed,
)
from weakseg.pipeline.superpixels import SuperpixelSettings, dense_features, segmented, superpixels

Vectors = dict[str, np.ndarray]


def prefixed(vectors: Vectors, letter: str) -> Iterator[tuple[str, Vectors]]:
    """The cases c0, c1, … of a file, each with its arrays by what stands behind the point."""
    names = sorted({name.partition(".")[0] for name in vectors if name.startswith(letter) and "." in name})
    assert names
    for case in names:
        start = f"{case}."
        yield case, {name.removeprefix(start): array for name, array in vectors.items() if name.startswith(start)}


def segments(image: np.ndarray, params: np.ndarray) -> np.ndarray:
    sigma, k, min_size = params
    return graph_segments(image, float(sigma), float(k), int(min_size))


def test_segments(parity: Any) -> None:
    for case, vectors in prefixed(parity("superpixels/felzenszwalb"), "c"):
        ids = segments(vectors["image"], vectors["params"])
        assert ids.dtype == np.int32
        assert ids.max() + 1 == vectors["count"]
        np.testing.assert_array_equal(ids, vectors["ids"], case)


def test_smoothing(parity: Any) -> None:
    vectors = parity("superpixels/felzenszwalb")
    taps = {name: array for name, array in vectors.items() if name.startswith("taps_")}
    assert taps
    for name, expected in taps.items():
        np.testing.assert_allclose(gaussian_taps(float(name.removeprefix("taps_"))), expected, rtol=0, atol=1e-7)
    images = [case for _, case in prefixed(vectors, "c") if "smoothed" in case]
    assert images
    for case in images:
        ours = smoothed(case["image"], float(case["params"][0]))
        np.testing.assert_allclose(ours, case["smoothed"], rtol=0, atol=1e-4)


def test_features(parity: Any) -> None:
    for case, vectors in prefixed(parity("superpixels/sp_features"), "c"):
        side = int(vectors["infer_size"])
        ours = segment_features(vectors["dense"], vectors["ids"], (side, side))
        np.testing.assert_allclose(ours, vectors["feature"], rtol=0, atol=2e-5, err_msg=case)


def test_merging(parity: Any) -> None:
    for case, vectors in prefixed(parity("superpixels/merge"), "c"):
        merged, pairs = merge_segments(vectors["ids"], vectors["feature"], int(vectors["num"]))
        np.testing.assert_array_equal(pairs, vectors["pairs"], case)
        np.testing.assert_array_equal(merged, vectors["merged"], case)


def test_ties(parity: Any) -> None:
    vectors = parity("superpixels/merge")
    counts = [int(name.removeprefix("tie.pairs")) for name in vectors if name.startswith("tie.pairs")]
    assert counts
    for count in counts:
        merged, pairs = merge_segments(vectors["tie.ids"], vectors["tie.feature"], count)
        np.testing.assert_array_equal(pairs, vectors[f"tie.pairs{count}"])
        np.testing.assert_array_equal(merged, vectors[f"tie.merged{count}"])


def read_bytes(folder: Path, png: np.ndarray) -> np.ndarray:
    (folder / "map.png").write_bytes(png.tobytes())
    return read_superpixels(folder / "map.png")


def test_files(parity: Any, tmp_path: Path) -> None:
    merging = parity("superpixels/merge")
    last = merging[f"c{int(merging['cases']) - 1}.merged"]
    np.testing.assert_array_equal(read_bytes(tmp_path, merging["last_png"]), last)
    vectors = parity("superpixels/encoding")
    ids = read_bytes(tmp_path, vectors["png"])
    np.testing.assert_array_equal(ids, vectors["ids"])
    side = int(vectors["loaded_size"])
    padding = [(0, side - length) for length in ids.shape]
    padded = np.pad(ids, padding, constant_values=ids.max() + 1)
    np.testing.assert_array_equal(renumbered(padded), vectors["loaded_canonical"])
    write_superpixels(tmp_path / "ours.png", ids)
    np.testing.assert_array_equal(read_superpixels(tmp_path / "ours.png"), ids)


class RawPixels(nn.Module):
    """Normalised images (N, 3, H, W) back to RGB in [0, 255]: the reference subtracts no mean here."""

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.from_numpy(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (images * std + mean) * 255


@pytest.fixture(scope="module")
def vgg16(parity: Any) -> VGG16:
    """Its stage 4 ends with conv5_3."""
    vectors = parity("superpixels/pipeline")
    network = VGG16()
    network.caffe_input = RawPixels()
    state = {}
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        name_there = name.replace(".", "_")
        values = parity.fill.fill(name_there, shape, int(vectors["seed"]), float(vectors["gain"]))
        state[name] = torch.from_numpy(values)
    network.load_state_dict(state)
    return network.eval()


def test_the_whole(parity: Any, vgg16: VGG16) -> None:
    vectors = parity("superpixels/pipeline")
    sigma, k, min_size = vectors["params"].tolist()
    settings = SuperpixelSettings(
        sigma=sigma,
        k=k,
        min_size=int(min_size),
        count=int(vectors["num"]),
        stage=4,
        canvas=int(vectors["infer_size"]),
    )
    for case, expected in prefixed(vectors, "p"):
        image = expected["image"]
        ids = segmented(image, settings, merging=True)
        np.testing.assert_array_equal(ids, expected["ids"], case)
        dense = dense_features(image, vgg16, settings, "cpu")
        values = dense.values.astype(np.float64)
        agrees([values.mean(), values.std(), values.max()], expected["dense_stats"], relative=1e-4)
        places = np.arange(16) * (values.size - 1) // 15
        largest = expected["dense_stats"][2]
        agrees(values.ravel()[places], expected["dense_sample"], relative=1e-4, largest=largest)
        features = segment_features(dense.values, ids, dense.canvas)
        agrees(features[:, ::16], expected["feature_every16"], relative=1e-4)
        merged = superpixels(image, vgg16, settings)
        agreeing = 1.0 if expected["lead"] >= 1e-5 else 0.99
        assert matched_pixels(merged, expected["merged"]) >= agreeing, case


def matched_pixels(first: np.ndarray, second: np.ndarray) -> float:
    """The share of pixels where two partitions agree if their ids are matched as well as possible."""
    counts = np.zeros((first.max() + 1, second.max() + 1), np.int64)
    np.add.at(counts, (first, second), 1)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / first.size)
