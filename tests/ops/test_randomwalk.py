"""Random walks: what a walk conserves, and a dense oracle that is written from the definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weakseg.errors import WeaksegError
from weakseg.ops import randomwalk
from weakseg.ops.randomwalk import (
    boundary_walk,
    chebyshev_coefficients,
    lopsided_affinities,
    pair_offsets,
    path,
    path_affinities,
    raised_beta,
    random_walk,
    reduced_radius,
)

SHAPES = [(1, 1), (1, 7), (9, 1), (2, 2), (3, 11), (6, 8), (13, 5)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_case(size: tuple[int, int], radius: int = 5, maps: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps (C, h, w) and affinities (P, h, w) of all pairs, those that reach out of the map included."""
    generator = seeded(seed)
    return torch.rand(maps, *size, generator=generator), torch.rand(
        len(pair_offsets(radius)), *size, generator=generator
    )


def dense_matrix(affinities: Tensor, radius: int, beta: float) -> np.ndarray:
    """B (N, N) in float64, from the definition."""
    pairs, height, width = affinities.shape
    matrix = np.eye(height * width)
    for pair, (dy, dx) in zip(range(pairs), pair_offsets(radius), strict=True):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    matrix[i, j] = matrix[j, i] = float(affinities[pair, y, x]) ** beta
    return matrix


def dense_walk(maps: Tensor, affinities: Tensor, radius: int, beta: float, steps: int) -> np.ndarray:
    matrix = dense_matrix(affinities, radius, beta)
    transition = np.linalg.matrix_power(matrix / matrix.sum(0), steps)
    return (maps.flatten(1).double().numpy() @ transition).reshape(maps.shape)


def distance(walked: Tensor, expected: np.ndarray) -> float:
    assert walked.shape == expected.shape
    return float(np.abs(walked.double().numpy() - expected).max(initial=0))


# Pairs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", range(12))
def test_offsets_are_half_of_a_disc(radius: int) -> None:
    offsets = pair_offsets(radius)
    both = [*offsets, *((-dy, -dx) for dy, dx in offsets)]
    around = range(-radius, radius + 1)
    disc = {(y, x) for y in around for x in around if 0 < math.hypot(y, x) < radius}
    assert len(both) == len(set(both))
    assert set(both) == disc


@pytest.mark.parametrize(("dy", "dx"), [*pair_offsets(10), (0, -3), (-2, 5)])
def test_paths_lead_from_end_to_end_in_steps_of_one(dy: int, dx: int) -> None:
    points = set(path(dy, dx))
    reached, border = {(0, 0)}, [(0, 0)]
    while border:
        y, x = border.pop()
        new = {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & points - reached
        reached |= new
        border += new
    assert reached == points
    assert (dy, dx) in points
    assert points == {(dy - y, dx - x) for y, x in points}  # the way back is the same
    for y, x in points:
        assert abs(dy * x - dx * y) / math.hypot(dy, dx) < 1


@pytest.mark.parametrize("size", SHAPES)
def test_affinity_is_one_less_the_strongest_boundary_on_the_path(size: tuple[int, int]) -> None:
    boundary = torch.rand(2, *size, generator=seeded(1))
    affinities = path_affinities(boundary, 5)
    assert affinities.shape == (2, 34, *size)
    for image in range(2):
        for pair, (dy, dx) in enumerate(pair_offsets(5)):
            for y in range(size[0]):
                for x in range(size[1]):
                    inside = y + dy < size[0] and 0 <= x + dx < size[1]
                    crossed = [float(boundary[image, y + j, x + i]) for j, i in path(dy, dx)] if inside else [1.0]
                    assert float(affinities[image, pair, y, x]) == pytest.approx(1 - max(crossed), abs=1e-7)


def test_path_affinities_have_a_gradient() -> None:
    boundary = torch.rand(5, 6, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: path_affinities(b, 3), (boundary,))


@pytest.mark.parametrize(
    ("size", "radius"), [((56, 56), 5), ((11, 60), 5), ((10, 60), 4), ((5, 5), 2), ((4, 30), 1), ((1, 1), 1)]
)
def test_small_maps_reduce_the_radius(size: tuple[int, int], radius: int) -> None:
    assert reduced_radius(size) == radius


def test_pairs_of_a_map_with_a_reduced_radius_fit() -> None:
    for height in range(1, 14):
        for width in range(1, 14):
            radius = reduced_radius((height, width))
            reach = radius - 1
            count = (height - reach) * (width - 2 * reach)
            placed = lopsided_affinities(torch.ones(len(pair_offsets(radius)), count), (height, width), radius)
            assert placed.sum() == len(pair_offsets(radius)) * count


def test_ten_corner_pixels_of_affinitynet_have_no_partner() -> None:
    height, width = 12, 15
    placed = lopsided_affinities(torch.ones(34, 8 * 7), (height, width))
    alone = np.argwhere((dense_matrix(placed, 5, 1).sum(0) == 1).reshape(height, width)).tolist()
    top = [[0, x] for x in range(4)]
    bottom = [[height - 2, 0], [height - 2, width - 1], [height - 1, 0], [height - 1, 1]]
    assert alone == sorted([*top, *bottom, [height - 1, width - 2], [height - 1, width - 1]])


@pytest.mark.parametrize(("size", "shape"), [((12, 15), (34, 55)), ((4, 20), (34, 1)), ((12, 15), (33, 56))])
def test_pairs_that_do_not_fit_the_map_are_refused(size: tuple[int, int], shape: tuple[int, int]) -> None:
    with pytest.raises(WeaksegError, match=rf"{size[0]} × {size[1]} with radius 5: expected \(34, "):
        lopsided_affinities(torch.ones(shape), size)


# The walk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("chebyshev", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 64])
def test_walk_equals_the_dense_product(size: tuple[int, int], chebyshev: bool, steps: int) -> None:
    maps, affinities = random_case(size)
    walked = random_walk(maps, affinities, beta=3, steps=steps, chebyshev=chebyshev)
    assert walked.dtype == torch.float32
    assert distance(walked, dense_walk(maps, affinities, 5, 3, steps)) < 2e-6


def test_walk_in_float64_is_exact() -> None:
    maps, affinities = random_case((6, 9))
    walked = random_walk(maps.double(), affinities.double(), beta=8, steps=256)
    assert walked.dtype == torch.float64
    assert distance(walked, dense_walk(maps, affinities, 5, 8, 256)) < 1e-13


def test_maps_in_half_precision_walk_in_float32() -> None:
    maps, affinities = random_case((6, 9))
    walked = random_walk(maps.half(), affinities, beta=8, steps=16)
    assert torch.equal(walked, random_walk(maps.half().float(), affinities, beta=8, steps=16))


@given(st.integers(0, 1000), st.floats(0.02, 0.9), st.integers(2, 5))
def test_beta_is_raised_until_pairs_have_their_mean(seed: int, most: float, radius: int) -> None:
    _, affinities = random_case((6, 8), radius, seed=seed)
    linked = dense_matrix(affinities, radius, 1e-9) > 0.5
    np.fill_diagonal(linked, False)
    before = dense_matrix(affinities, radius, 0.5)[linked].mean()
    found = raised_beta(affinities, 0.5, most, radius)
    after = dense_matrix(affinities, radius, found)[linked].mean()
    if before <= most:
        assert found == 0.5
    else:
        assert after == pytest.approx(most, rel=2e-2)
        assert after <= most


def test_beta_is_finite_where_all_pairs_are_one() -> None:
    assert raised_beta(torch.ones(34, 6, 8), 8, 0.03) == pytest.approx(2.0**12)
    assert raised_beta(torch.zeros(34, 6, 8), 8, 0.03) == 8
    assert raised_beta(torch.zeros(0, 3, 3), 8, 0.03, radius=1) == 8


@pytest.mark.parametrize(("steps", "restart"), [(0, 0.3), (1, 0.3), (9, 0.3), (200, 0.1), (5, 1.0)])
def test_a_restart_mixes_all_shorter_walks(steps: int, restart: float) -> None:
    """y = r Σ_(k < t) (1 - r)^k x T^k + (1 - r)^t x T^t."""
    maps, affinities = random_case((6, 8))
    shares = [restart * (1 - restart) ** k for k in range(steps)] + [(1 - restart) ** steps]
    matrix = dense_matrix(affinities, 5, 3)
    transition, power = matrix / matrix.sum(0), np.eye(48)
    expected = np.zeros((3, 48))
    for share in shares:
        expected += share * (maps.flatten(1).double().numpy() @ power)
        power = power @ transition
    walked = random_walk(maps, affinities, beta=3, steps=steps, restart=restart)
    np.testing.assert_allclose(walked.flatten(1), expected, atol=1e-5)


def test_a_restart_keeps_constants_and_small_things() -> None:
    _, affinities = random_case((9, 9))
    constant = torch.full((2, 9, 9), 0.3)
    assert torch.equal(random_walk(constant, affinities, beta=8, steps=256, restart=0.02), constant)
    peak = torch.zeros(1, 9, 9)
    peak[0, 4, 4] = 1
    everywhere_alike = torch.ones_like(affinities)
    flooded, kept = (random_walk(peak, everywhere_alike, beta=8, steps=256, restart=r)[0] for r in (0, 0.05))
    assert flooded.max() < 1.6 * flooded.mean()
    assert kept[4, 4] == kept.max() > 2 * kept.mean()


@pytest.mark.parametrize("options", [{"restart": -0.1}, {"restart": 1.1}, {"restart": 0.1, "chebyshev": True}])
def test_a_wrong_restart_is_explained(options: dict[str, Any]) -> None:
    with pytest.raises(WeaksegError, match="restart"):
        random_walk(*random_case((3, 4)), beta=8, steps=4, **options)


def test_boundary_walk_is_the_walk_of_path_affinities() -> None:
    generator = seeded(3)
    maps, boundary = torch.rand(2, 7, 8, generator=generator), torch.rand(7, 8, generator=generator)
    expected = dense_walk(maps * (1 - boundary), path_affinities(boundary, 4), 4, 10, 32)
    assert distance(boundary_walk(maps, boundary, radius=4, steps=32), expected) < 2e-6


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    radius=st.integers(1, 6),
    maps=st.integers(0, 3),
    beta=st.floats(0.1, 12),
    steps=st.integers(0, 20),
    chebyshev=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    size: tuple[int, int], radius: int, maps: int, beta: float, steps: int, chebyshev: bool, seed: int
) -> None:
    values, affinities = random_case(size, radius, maps, seed)
    walked = random_walk(values, affinities, radius=radius, beta=beta, steps=steps, chebyshev=chebyshev)
    assert distance(walked, dense_walk(values, affinities, radius, beta, steps)) < 2e-6


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    value=st.floats(-1e6, 1e6, width=32),
    chebyshev=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_constants_stay_exactly_constant(size: tuple[int, int], value: float, chebyshev: bool, seed: int) -> None:
    _, affinities = random_case(size, seed=seed)
    maps = torch.full((1, *size), value)
    assert torch.equal(random_walk(maps, affinities, beta=8, steps=256, chebyshev=chebyshev), maps)


@pytest.mark.parametrize("chebyshev", [False, True])
def test_mass_is_conserved(chebyshev: bool) -> None:
    """Σ_j d_j x_j stays, where d_j = Σ_i B_ij: T is reversible."""
    maps, affinities = random_case((9, 14))
    weight = dense_matrix(affinities, 5, 8).sum(0)
    walked = random_walk(maps, affinities, beta=8, steps=256, chebyshev=chebyshev)
    before, after = (x.flatten(1).double().numpy() @ weight for x in (maps, walked))
    np.testing.assert_allclose(after, before, rtol=2e-6)


def test_values_stay_in_their_range_and_even_out() -> None:
    maps, affinities = random_case((9, 14))
    ranges = [
        torch.aminmax(random_walk(maps, affinities, beta=2, steps=steps).flatten(1), dim=1) for steps in (0, 4, 64)
    ]
    for before, after in itertools.pairwise(ranges):
        assert (after.min > before.min).all()
        assert (after.max < before.max).all()
    # After many steps every map is its mean, weighted by d.
    weight = torch.from_numpy(dense_matrix(affinities, 5, 2).sum(0)).float()
    mean = maps.flatten(1) @ weight / weight.sum()
    walked = random_walk(maps, affinities, beta=2, steps=4096)
    torch.testing.assert_close(walked, mean[:, None, None].expand_as(walked), atol=1e-5, rtol=0)


def test_steps_add_up() -> None:
    maps, affinities = random_case((8, 11))
    halfway = random_walk(maps, affinities, beta=5, steps=19)
    expected = random_walk(maps, affinities, beta=5, steps=32)
    assert torch.equal(random_walk(halfway, affinities, beta=5, steps=13), expected)


def test_maps_do_not_touch_each_other() -> None:
    maps, affinities = random_case((8, 11), maps=4)
    order = [2, 0, 3, 1]
    walked = random_walk(maps, affinities, beta=5, steps=32)
    assert torch.equal(random_walk(maps[order], affinities, beta=5, steps=32), walked[order])
    assert torch.equal(random_walk(maps[2:3], affinities, beta=5, steps=32), walked[2:3])


def test_boundary_walk_commutes_with_mirror_images() -> None:
    generator = seeded(4)
    maps, boundary = torch.rand(2, 9, 12, generator=generator), torch.rand(9, 12, generator=generator)
    walked = boundary_walk(maps, boundary)
    for axes in ([-1], [-2], [-2, -1]):
        mirrored = boundary_walk(maps.flip(axes), boundary.flip(axes)).flip(axes)
        torch.testing.assert_close(mirrored, walked, atol=2e-6, rtol=0)
    turned = boundary_walk(maps.mT, boundary.mT).mT
    torch.testing.assert_close(turned, walked, atol=2e-6, rtol=0)


def test_a_wall_is_not_crossed() -> None:
    maps = torch.zeros(1, 10, 20)
    maps[..., 4] = 1
    boundary = torch.zeros(10, 20)
    boundary[:, 9] = 1
    walked = boundary_walk(maps, boundary)
    assert (walked[..., :9] > 0).all()
    assert (walked[..., 9:] == 0).all()


def test_nothing_moves_where_everything_is_boundary_or_there_are_no_pairs() -> None:
    maps, _ = random_case((7, 9))
    assert torch.equal(random_walk(maps, torch.zeros(34, 7, 9), beta=8, steps=64), maps)
    assert torch.equal(random_walk(maps, torch.zeros(0, 7, 9), radius=1, beta=8, steps=64), maps)
    assert (boundary_walk(maps, torch.ones(7, 9)) == 0).all()


def test_arguments_are_left_as_they_were() -> None:
    maps, affinities = random_case((7, 9))
    kept = maps.clone(), affinities.clone()
    for chebyshev in (False, True):
        for steps in (0, 1, 8):
            walked = random_walk(maps, affinities, beta=8, steps=steps, chebyshev=chebyshev)
            walked += 1
            assert torch.equal(maps, kept[0])
            assert torch.equal(affinities, kept[1])


def test_views_and_tensors_with_gradient_are_taken() -> None:
    maps, affinities = random_case((8, 11))
    walked = random_walk(maps, affinities, beta=5, steps=8)
    strided = maps.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    again = random_walk(strided.requires_grad_(), affinities.mT.contiguous().mT, beta=5, steps=8)
    assert not again.requires_grad
    assert torch.equal(again, walked)


def batch_of_cases() -> tuple[Tensor, Tensor]:
    cases = [random_case((7, 12), seed=seed) for seed in range(3)]
    return torch.stack([maps for maps, _ in cases]), torch.stack([affinities for _, affinities in cases])


@pytest.mark.parametrize("chebyshev", [False, True])
def test_a_batch_is_its_images(chebyshev: bool) -> None:
    maps, affinities = batch_of_cases()
    together = random_walk(maps, affinities, beta=8, steps=64, chebyshev=chebyshev)
    for image in range(3):
        alone = random_walk(maps[image], affinities[image], beta=8, steps=64, chebyshev=chebyshev)
        assert torch.equal(together[image], alone)
    boundary = torch.rand(3, 7, 12, generator=seeded(5))
    walked = boundary_walk(maps, boundary, chebyshev=chebyshev)
    assert torch.equal(walked[1], boundary_walk(maps[1], boundary[1], chebyshev=chebyshev))


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("most", [1, 1 << 27])
@pytest.mark.parametrize("chebyshev", [False, True])
def test_the_form_for_other_devices_is_the_same_walk(
    size: tuple[int, int], most: int, chebyshev: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [random_case(size, radius=4, seed=seed) for seed in range(2)]
    maps, affinities = (torch.stack(parts) for parts in zip(*cases, strict=True))
    expected = random_walk(maps, affinities, radius=4, beta=8, steps=33, chebyshev=chebyshev)
    monkeypatch.setattr(randomwalk, "MAX_WINDOW_VALUES", most)
    monkeypatch.setattr(randomwalk, "_walk_images", randomwalk._walk_batch)
    walked = random_walk(maps, affinities, radius=4, beta=8, steps=33, chebyshev=chebyshev)
    torch.testing.assert_close(walked, expected, atol=1e-6, rtol=0)
    constant = torch.full_like(maps, 0.3)
    assert torch.equal(random_walk(constant, affinities, radius=4, beta=8, steps=33, chebyshev=chebyshev), constant)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chebyshev", [False, True])
def test_cuda(chebyshev: bool) -> None:
    maps, affinities = batch_of_cases()
    expected = random_walk(maps, affinities, beta=8, steps=256, chebyshev=chebyshev)
    walked = random_walk(maps.cuda(), affinities.cuda(), beta=8, steps=256, chebyshev=chebyshev)
    torch.testing.assert_close(walked.cpu(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1500), (60, 80), (1500, 1)])
def test_maps_larger_than_a_block(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    maps, affinities = random_case(size)
    expected = random_walk(maps, affinities, beta=8, steps=16)
    monkeypatch.setattr(randomwalk, "_walk_images", randomwalk._walk_batch)
    torch.testing.assert_close(random_walk(maps, affinities, beta=8, steps=16), expected, atol=1e-6, rtol=0)


# Chebyshev ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0, 1, 2, 5, 31, 64, 256])
def test_chebyshev_coefficients_are_those_of_the_power(power: int) -> None:
    x = np.linspace(-1, 1, 201)
    coefficients = chebyshev_coefficients(power, tail=0)
    np.testing.assert_allclose(np.polynomial.chebyshev.chebval(x, coefficients), x**power, atol=1e-12)
    assert sum(coefficients) == pytest.approx(1)
    short = chebyshev_coefficients(power, tail=1e-7)
    assert short == coefficients[: len(short)]
    assert sum(coefficients[len(short) :]) <= 1e-7


def test_chebyshev_takes_fewer_steps() -> None:
    assert len(chebyshev_coefficients(256)) < 90
    assert len(chebyshev_coefficients(64)) < 45


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf])
def test_beta_has_to_be_positive(beta: float) -> None:
    maps, affinities = random_case((3, 4))
    with pytest.raises(WeaksegError, match=rf"beta is {beta}; it has to be positive and finite"):
        random_walk(maps, affinities, beta=beta, steps=1)


def test_steps_cannot_be_negative() -> None:
    maps, affinities = random_case((3, 4))
    with pytest.raises(WeaksegError, match="number of steps is -1"):
        random_walk(maps, affinities, beta=1, steps=-1)


@pytest.mark.parametrize(
    ("maps", "affinities"),
    [
        ((2, 3, 4), (34, 3, 5)),
        ((2, 3, 4), (33, 3, 4)),
        ((3, 4), (34, 3, 4)),
        ((1, 2, 3, 4), (34, 3, 4)),
        ((2, 1, 3, 4), (1, 34, 3, 4)),
    ],
)
def test_shapes_have_to_fit(maps: tuple[int, ...], affinities: tuple[int, ...]) -> None:
    with pytest.raises(WeaksegError, match=r"do not fit: expected \(C, h, w\) and \(34, h, w\) for radius 5"):
        random_walk(torch.zeros(maps), torch.zeros(affinities), beta=1, steps=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_affinities_have_to_be_affinities(value: float) -> None:
    maps, affinities = random_case((3, 4))
    affinities[0, 1, 1] = value
    with pytest.raises(WeaksegError, match=r"Affinities outside 0 … 1"):
        random_walk(maps, affinities, beta=1, steps=1)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_maps_have_to_be_finite(value: float) -> None:
    maps, affinities = random_case((3, 4))
    maps[0, 1, 1] = value
    with pytest.raises(WeaksegError, match="not numbers, make no random walk"):
        random_walk(maps, affinities, beta=1, steps=1)
