"""The compiled sums over pairs against those by views of whole maps; `tests/methods` has them written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weakseg.ops.pairsums import PairSums, _offset_by_offset, _row_by_row, pair_sums


@given(
    images=st.integers(1, 3),
    height=st.integers(1, 14),
    width=st.integers(1, 20),
    radius=st.integers(1, 6),
    levels=st.sampled_from([3, 1000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_forms_agree(images: int, height: int, width: int, radius: int, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few levels: many boundaries on a path are equal, and the same one of them has to have the derivative.
    boundary = torch.randint(levels + 1, (images, height, width), generator=generator).float() / levels
    field = torch.randint(-4, 5, (images, 2, height, width), generator=generator).float()
    labels = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[
        torch.randint(4, (images, height, width), generator=generator)
    ]
    compiled, viewed = (form(boundary, field, labels, radius) for form in (_row_by_row, _offset_by_offset))
    torch.testing.assert_close(compiled.sums, viewed.sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled.to_boundary, viewed.to_boundary, rtol=1e-5, atol=1e-4)
    assert torch.equal(compiled.to_field, viewed.to_field)


def drawn(images: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A boundary, displacements and labels at random."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(images, height, width, generator=generator),
        torch.randn(images, 2, height, width, generator=generator),
        torch.randint(3, (images, height, width), generator=generator).to(torch.uint8),
    )


def test_views_that_are_not_contiguous_are_read_as_what_they_are() -> None:
    inputs = drawn(1, 9, 12)
    plain = pair_sums(*inputs, 3)
    turned = pair_sums(*(array.mT.contiguous().mT for array in inputs), 3)
    assert all(torch.equal(*pair) for pair in zip(plain, turned, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees() -> None:
    inputs = drawn(2, 24, 30)
    here = pair_sums(*inputs, 10)
    there = PairSums(*(array.cpu() for array in pair_sums(*(array.cuda() for array in inputs), 10)))
    for ours, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
