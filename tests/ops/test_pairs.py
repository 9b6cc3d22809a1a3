"""How many pairs labels have, by the definition; `tests/methods` has what they teach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weakseg.ops.pairs import count_pairs, kinds_of_pairs, shifted


def random_labels(images: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(4, (images, height, width), generator=generator)
    return torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[choice]


def one_by_one(labels: Tensor, radius: int) -> list[int]:
    """Background, foreground and different: a pixel, and each one below or right of it that is less than `radius` away,
    if all that are so are within the map."""
    height, width = labels.shape[1:]
    reach = radius - 1
    near = [
        (dy, dx)
        for dy in range(radius)
        for dx in range(-reach, radius)
        if (dy > 0 or dx > 0) and dy**2 + dx**2 < radius**2
    ]
    counts = [0, 0, 0]
    for of_image in labels.tolist():
        for y in range(height - reach):
            for x in range(reach, width - reach):
                for dy, dx in near:
                    first, second = of_image[y][x], of_image[y + dy][x + dx]
                    if 255 not in (first, second):
                        counts[2 if first != second else int(first > 0)] += 1
    return counts


labels_and_radius = {
    "labels": st.builds(random_labels, st.integers(1, 3), st.integers(1, 9), st.integers(1, 14), st.integers(0, 999)),
    "radius": st.integers(1, 5),
}


@given(**labels_and_radius)
def test_pairs_are_those_counted_one_by_one(labels: Tensor, radius: int) -> None:
    counts = count_pairs(labels, radius)
    assert counts.dtype == torch.int64
    assert counts.tolist() == one_by_one(labels, radius)


@given(**labels_and_radius)
def test_both_forms_count_alike(labels: Tensor, radius: int) -> None:
    viewed = torch.zeros(3, dtype=torch.int64)
    for ends in shifted(labels, radius):
        viewed += torch.stack([kind.sum() for kind in kinds_of_pairs(*ends)])
    assert torch.equal(count_pairs(labels, radius), viewed)


def test_labels_that_are_not_contiguous_are_read_as_what_they_are() -> None:
    labels = random_labels(2, 9, 12, 0)
    assert torch.equal(count_pairs(labels.mT.contiguous().mT, 3), count_pairs(labels, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees() -> None:
    labels = random_labels(2, 24, 30, 0)
    assert torch.equal(count_pairs(labels.cuda(), 10).cpu(), count_pairs(labels, 10))
