"""How often classes are seen together, against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weakseg.data.cooccurrence import images_with_both, share_with_other
from weakseg.data.dataset import Sample
from weakseg.labels import Box, WeakLabels


def sample(labels: WeakLabels) -> Sample:
    return Sample("a", Path("a.jpg"), labels)


def test_three_images_of_three_classes() -> None:
    tags = WeakLabels(frozenset({1, 2})), WeakLabels(boxes=(Box(1, 0, 0, 2, 2),)), WeakLabels(frozenset())
    counts = images_with_both([sample(labels) for labels in tags], 3)
    assert counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    shares = share_with_other(counts)
    assert shares[:2].tolist() == [[1, 0.5, 0], [1, 1, 0]]
    assert np.isnan(shares[2]).all()


@given(st.lists(st.frozensets(st.integers(1, 5)), max_size=12))
def test_every_pair_is_counted(tags: list[frozenset[int]]) -> None:
    counts = images_with_both([sample(WeakLabels(labels)) for labels in tags], 5)
    for a in range(1, 6):
        for b in range(1, 6):
            assert counts[a - 1, b - 1] == sum({a, b} <= labels for labels in tags)
