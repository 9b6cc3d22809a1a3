"""Average precision of instances: by hand, and what must hold for any images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weakseg.errors import WeaksegError
from weakseg.ops.average_precision import AveragePrecision
from weakseg.ops.instances import Instances

SIZE = (4, 6)


def instances(*found: tuple[int, float, slice]) -> Instances:
    """Instances of label, score and columns."""
    masks = np.zeros((len(found), *SIZE), bool)
    for mask, (_, _, columns) in zip(masks, found, strict=True):
        mask[:, columns] = True
    labels, scores = [label for label, *_ in found], [score for _, score, _ in found]
    return Instances(np.array(labels, np.int16), np.array(scores, np.float32), masks)


def test_by_hand() -> None:
    truth = instances((1, 1, slice(0, 2)), (1, 1, slice(2, 4)), (2, 1, slice(4, 6)))
    counted = AveragePrecision(5)
    # Best first: right, the same thing again, nothing there, right.
    predicted = (1, 0.9, slice(0, 2)), (1, 0.8, slice(0, 3)), (1, 0.7, slice(5, 6)), (1, 0.6, slice(2, 4))
    counted.update(truth, instances(*predicted, (3, 0.5, slice(0, 1))), "a")
    result = counted.average_precision()
    assert result[1] == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert result[2] == 0, "in the ground truth, never predicted"
    assert np.isnan(result[[0, 3, 4]]).all(), "predicted or not, there are no true instances"
    assert counted.mean == pytest.approx(result[1] / 2)
    assert counted.to_dict()["average_precision"][3] is None


def test_precision_is_monotone_from_the_right() -> None:
    counted = AveragePrecision(2)
    counted.update(instances((1, 1, slice(0, 2))), instances((1, 0.9, slice(4, 6))), "a")
    counted.update(instances((1, 1, slice(0, 2))), instances((1, 0.5, slice(0, 2))), "b")
    counted.update(instances((1, 1, slice(0, 2))), instances((1, 0.4, slice(0, 2))), "c")
    # Precision at the two hits is 1/2 and 2/3; the first counts as 2/3.
    assert counted.average_precision()[1] == pytest.approx(2 / 3 * 2 / 3)


def test_nothing_true_is_no_score() -> None:
    counted = AveragePrecision(3)
    counted.update(instances(), instances((1, 1, slice(0, 1))), "a")
    assert np.isnan(counted.mean)
    assert counted.to_dict()["mean_average_precision"] is None


def test_other_sizes_are_refused() -> None:
    other = Instances(np.zeros(0, np.int16), np.zeros(0, np.float32), np.zeros((0, 6, 4), bool))
    with pytest.raises(WeaksegError, match=r"kettle: predicted instances have the size \(6, 4\)"):
        AveragePrecision(3).update(instances(), other, "kettle")


columns = st.tuples(st.integers(0, 5), st.integers(1, 6)).map(lambda ends: slice(ends[0], max(ends[0] + 1, ends[1])))
found = st.lists(st.tuples(st.integers(1, 2), st.sampled_from([0.1, 0.4, 0.7]), columns), max_size=4)


@given(st.lists(st.tuples(found, found), max_size=4))
def test_scores_are_shares_and_parts_add_up(images: list[tuple[list, list]]) -> None:
    whole, parts = AveragePrecision(3), [AveragePrecision(3) for _ in range(2)]
    perfect = AveragePrecision(3)
    for number, (truth, predicted) in enumerate(images):
        for counted in (whole, parts[number >= len(images) // 2]):
            counted.update(instances(*truth), instances(*predicted), str(number))
        distinct = instances(*{(label, str(place)): (label, 1.0, place) for label, _, place in truth}.values())
        perfect.update(distinct, distinct, str(number))
    values = whole.average_precision()
    assert np.all(np.isnan(values) | ((values >= 0) & (values <= 1)))
    np.testing.assert_allclose((parts[0] + parts[1]).average_precision(), values)
    assert np.isnan(perfect.mean) or perfect.mean == 1
