"""Random walks and their pairs against vectors of AffinityNet's and IRNet's reference implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reference import agrees, dense
from weakseg.ops.randomwalk import (
    boundary_walk,
    lopsided_affinities,
    pair_offsets,
    path,
    path_affinities,
    random_walk,
    reduced_radius,
)

# IRNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chebyshev", [False, True])
@pytest.mark.cases("irnet/random_walk", "settings_*")
def test_irnet_walk(parity: Any, case: str, chebyshev: bool) -> None:
    vectors = parity("irnet/random_walk")
    maps, boundary = (torch.from_numpy(vectors[f"{name}_{case}"]) for name in ("cam", "edge"))
    radius, beta, log2_steps = vectors[f"settings_{case}"].tolist()
    walked = boundary_walk(maps, boundary[0], radius=radius, beta=beta, steps=2**log2_steps, chebyshev=chebyshev)
    agrees(walked, vectors[f"out_{case}"], absolute=1e-4)


def test_irnet_matrices(parity: Any) -> None:
    vectors = parity("irnet/random_walk")
    boundary = torch.from_numpy(vectors["matrix_edge"][0])
    affinities = path_affinities(boundary, 5)
    agrees(dense(affinities, 5), vectors["matrix_affinity"], absolute=1e-6)
    # Each map is one pixel: a step gives one row of T.
    pixels = torch.eye(boundary.numel()).unflatten(1, boundary.shape)
    transition = random_walk(pixels, affinities, radius=5, beta=int(vectors["matrix_beta"]), steps=1)
    agrees(transition.flatten(1), vectors["matrix_transition"], absolute=1e-6)


@pytest.mark.cases("irnet/sem_seg", "walk_*")
def test_irnet_walk_of_given_maps(parity: Any, case: str) -> None:
    vectors = parity("irnet/sem_seg")
    maps, boundary = (torch.from_numpy(vectors[f"{name}_{case}"]) for name in ("cam", "edge"))
    agrees(boundary_walk(maps, boundary[0]), vectors[f"walk_{case}"], absolute=1e-4)


def test_irnet_affinities(parity: Any) -> None:
    vectors = parity("irnet/affinity")
    radius = int(vectors["radius"])
    margin = radius - 1
    affinities = path_affinities(torch.from_numpy(vectors["edge"][:, 0]), radius)
    order = [pair_offsets(radius).index((dy, dx)) for dy, dx in vectors["offsets"].tolist()]
    inner = affinities[:, order, :-margin, margin:-margin]  # sources all of whose partners exist
    agrees(inner.flatten(2), vectors["affinity"], absolute=1e-6)


@pytest.mark.cases("irnet/path_index", "*_offsets")
def test_irnet_paths(parity: Any, case: str) -> None:
    vectors = parity("irnet/path_index")
    radius = int(vectors[f"{case}_margin"]) + 1
    offsets, points = vectors[f"{case}_offsets"], vectors[f"{case}_path_points"]
    paths = np.split(points, np.cumsum(vectors[f"{case}_path_lengths"])[:-1])
    theirs = {tuple(o): {tuple(p) for p in points.tolist()} for o, points in zip(offsets.tolist(), paths, strict=True)}
    assert theirs == {offset: set(path(*offset)) for offset in pair_offsets(radius)}
    _, width = vectors[f"{case}_size"]
    flat = offsets @ [width, 1]
    np.testing.assert_array_equal(vectors[f"{case}_src"] + flat[:, None], vectors[f"{case}_dst"])


# AffinityNet ----------------------------------------------------------------------------------------------------------


def partners(size: tuple[int, int], radius: int, pairs: int) -> np.ndarray:
    """The number of partners of each pixel."""
    ones = torch.ones(len(pair_offsets(radius)), pairs)
    return dense(lopsided_affinities(ones, size, radius), radius).sum(1).reshape(size) - 1


def test_affinitynet_offsets(parity: Any) -> None:
    assert pair_offsets(5) == [tuple(offset) for offset in parity("affinitynet/pairs")["offsets"].tolist()]


@pytest.mark.cases("affinitynet/pairs", "case_*")
def test_affinitynet_pairs(parity: Any, case: str) -> None:
    vectors = parity("affinitynet/pairs")
    radius, height, width = vectors[f"case_{case}"].tolist()
    first, second = vectors[f"from_{case}"], vectors[f"to_{case}"].reshape(len(pair_offsets(radius)), -1)
    numbers = torch.arange(1, second.size + 1, dtype=torch.float32).reshape(second.shape)
    expected = np.eye(height * width, dtype=np.float32)
    for row, number in zip(second, numbers.numpy(), strict=True):
        expected[first, row] = expected[row, first] = number
    np.testing.assert_array_equal(dense(lopsided_affinities(numbers, (height, width), radius), radius), expected)


@pytest.mark.cases("affinitynet/pairs", "*_degree")
def test_affinitynet_degrees(parity: Any, case: str) -> None:
    vectors = parity("affinitynet/pairs")
    sources, pairs, entries = vectors[f"{case}_counts"].tolist()
    expected = vectors[f"{case}_degree"]
    degrees = partners(expected.shape, reduced_radius(expected.shape), sources)
    np.testing.assert_array_equal(degrees, expected)
    assert degrees.sum() == 2 * pairs
    assert degrees.sum() + degrees.size == entries


@pytest.mark.cases("affinitynet/random_walk", "*_walked")
@pytest.mark.parametrize("chebyshev", [False, True])
def test_affinitynet_walk(parity: Any, case: str, chebyshev: bool) -> None:
    vectors = parity("affinitynet/random_walk")
    height, width = size = tuple((vectors["padded"] // 8).tolist())
    radius = reduced_radius(size)
    margin = radius - 1
    matrix = torch.from_numpy(vectors["aff_beta"])  # affinities to the power of 8
    inner = torch.arange(height * width).reshape(size)[:-margin, margin:-margin].flatten()
    pairs = torch.stack([matrix[inner, inner + dy * width + dx] for dy, dx in pair_offsets(radius)])
    affinities = lopsided_affinities(pairs, size, radius)
    agrees(dense(affinities, radius), vectors["aff_beta"], absolute=0)
    _, beta, log2_steps = vectors[f"{case}_options"].tolist()
    maps = torch.from_numpy(vectors[f"{case}_cam_low"]).reshape(-1, height, width)
    steps = 2 ** int(log2_steps)
    walked = random_walk(maps, affinities, radius=radius, beta=beta / 8, steps=steps, chebyshev=chebyshev)
    agrees(walked.flatten(1), vectors[f"{case}_walked"], absolute=1e-5)
