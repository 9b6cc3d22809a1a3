"""Pixel correlation: the block form against the dense form, which is written from the paper's equation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weakseg.ops.pixelcorrelation import pixel_correlation


def random_case(
    shape: tuple[int, int, int, int], dimension: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, _, height, width = shape
    maps = torch.rand(shape, generator=generator, dtype=dtype)
    return maps, torch.randn(images, dimension, height, width, generator=generator, dtype=dtype)


def dense(maps: Tensor, features: Tensor) -> Tensor:
    flat = features.flatten(2)
    unit = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + 1e-5)
    similarity = torch.relu(unit.transpose(1, 2) @ unit)
    columns = similarity / (similarity.sum(1, keepdim=True) + 1e-5)
    return (maps.flatten(2) @ columns).reshape(maps.shape)


@settings(max_examples=60)
@given(
    images=st.integers(1, 2),
    classes=st.integers(1, 4),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    block=st.integers(1, 60),
)
def test_equals_the_dense_form(images: int, classes: int, size: tuple[int, int], block: int) -> None:
    maps, features = random_case((images, classes, *size))
    maps.requires_grad_()
    features.requires_grad_()
    upstream = torch.linspace(-1, 1, maps.numel(), dtype=maps.dtype).reshape(maps.shape)
    ours, expected = pixel_correlation(maps, features, block), dense(maps, features)
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=0)
    gradients = torch.autograd.grad(ours, (maps, features), upstream)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, (maps, features), upstream), atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("block", [3, 512])
def test_gradients_are_those_of_finite_differences(block: int) -> None:
    maps, features = random_case((2, 2, 2, 4), dimension=3)
    assert torch.autograd.gradcheck(
        lambda m, f: pixel_correlation(m, f, block), (maps.requires_grad_(), features.requires_grad_())
    )


def test_one_argument_alone_has_a_gradient() -> None:
    for which in range(2):
        arguments = random_case((1, 2, 3, 4))
        arguments[which].requires_grad_()
        pixel_correlation(*arguments, block=5).square().sum().backward()
        (expected,) = torch.autograd.grad(dense(*arguments).square().sum(), arguments[which])
        torch.testing.assert_close(arguments[which].grad, expected, atol=1e-12, rtol=1e-9)
        assert arguments[1 - which].grad is None


def test_more_than_one_block_in_float32() -> None:
    maps, features = random_case((2, 5, 30, 41), dimension=16, dtype=torch.float32)
    upstream = torch.rand_like(maps)
    features.requires_grad_()
    ours, expected = pixel_correlation(maps, features), dense(maps.double(), features.double())
    torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(ours, features, upstream)
    (exact,) = torch.autograd.grad(expected, features, upstream.double())
    assert (gradient - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_pixel_without_features_gets_and_gives_nothing() -> None:
    maps, features = random_case((1, 2, 3, 4))
    features[:, :, 1, 2] = 0
    features.requires_grad_()
    averaged = pixel_correlation(maps, features, 5)
    averaged.sum().backward()
    assert features.grad is not None
    assert (averaged[:, :, 1, 2] == 0).all()
    assert (features.grad[:, :, 1, 2] == 0).all()
    assert features.grad.isfinite().all()
    changed = maps.clone()
    changed[:, :, 1, 2] = 9
    torch.testing.assert_close(pixel_correlation(changed, features, 5), averaged)


def test_constant_maps_stay_constant_and_others_in_their_range() -> None:
    maps, features = random_case((1, 2, 6, 7))
    maps[:, 0] = 0.25
    averaged = pixel_correlation(maps, features, 10)
    torch.testing.assert_close(averaged[:, 0], maps[:, 0], rtol=1e-4, atol=0)  # the ε in the denominator takes a little
    assert maps[:, 1].min() < averaged[:, 1].min()
    assert averaged[:, 1].max() < maps[:, 1].max()


def test_order_of_pixels_and_length_of_features_do_not_matter() -> None:
    maps, features = random_case((1, 3, 1, 40))
    averaged = pixel_correlation(maps, features, 16)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pixel_correlation(maps[..., order], features[..., order], 16), averaged[..., order])
    torch.testing.assert_close(pixel_correlation(maps, 1000 * features, 16), averaged, rtol=1e-4, atol=1e-4)


def test_autocast_does_not_lower_the_precision() -> None:
    maps, features = random_case((1, 3, 5, 6), dtype=torch.float32)
    features.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        averaged = pixel_correlation(maps, features)
        averaged.sum().backward()
    assert averaged.dtype == torch.float32
    assert torch.equal(averaged, pixel_correlation(maps, features))
    (expected,) = torch.autograd.grad(pixel_correlation(maps, features).sum(), features)
    assert torch.equal(features.grad, expected)


def test_half_precision_is_computed_in_float32() -> None:
    maps, features = (x.to(torch.bfloat16) for x in random_case((1, 3, 5, 6)))
    averaged = pixel_correlation(maps, features.requires_grad_())
    assert averaged.dtype == torch.float32
    assert torch.equal(averaged, pixel_correlation(maps.float(), features.float()))
    averaged.sum().backward()
    assert features.grad is not None
    assert features.grad.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    maps, features = random_case((2, 3, 30, 31))
    expected = pixel_correlation(maps, features)
    torch.testing.assert_close(pixel_correlation(maps.cuda(), features.cuda()).cpu(), expected)


def test_no_more_than_a_block_of_columns_is_saved_for_the_backward_pass() -> None:
    maps, features = random_case((1, 3, 20, 30), dtype=torch.float32)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pixel_correlation(maps, features.requires_grad_(), 32).sum().backward()
    assert saved
    assert max(saved) <= features.numel()
