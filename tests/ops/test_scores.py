from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from definitions import threshold_labels
from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.ops.accumulator import Accumulator
from weakseg.ops.boundary import BOUNDARY_TOLERANCE, BoundaryScore
from weakseg.ops.confusion import Confusion
from weakseg.ops.threshold_curve import THRESHOLDS, ThresholdCurve

untimed = settings(deadline=None)  # the first example compiles
sizes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)
label_values = st.sampled_from([0, 1, 2, 3, 4, 7, 254, 255])
near_thresholds = [
    np.nextafter(np.float32(t), np.float32(t + step)) if step else np.float32(t)
    for t in (0.0, 0.07, 0.29, 0.3, 0.59)
    for step in (-1, 0, 1)
]
scores = st.sampled_from([*near_thresholds, np.float32(-0.25), np.float32(-0.0), np.float32(1), np.float32(np.inf)])


@st.composite
def label_pairs(draw, values=label_values):
    shape = draw(sizes)
    return tuple(draw(hnp.arrays(np.uint8, shape, elements=values)) for _ in range(2))


@st.composite
def scored_images(draw, num_classes=5):
    """Ground truth, labels in any order and maps with many ties and scores at thresholds."""
    truth = draw(hnp.arrays(np.uint8, draw(sizes), elements=label_values))
    labels = draw(st.lists(st.integers(1, num_classes - 1), unique=True, max_size=num_classes - 1))
    maps = draw(hnp.arrays(np.float32, (len(labels), *truth.shape), elements=scores))
    return truth, np.array(labels, np.int16), maps


def counted(truth: np.ndarray, prediction: np.ndarray, num_classes: int = 5) -> Confusion:
    confusion = Confusion(num_classes)
    confusion.update(truth, prediction, "a")
    return confusion


class TestConfusion:
    @untimed
    @given(label_pairs())
    def test_counts_are_those_of_the_definition(self, pair) -> None:
        truth, prediction = pair
        confusion = counted(truth, prediction)
        valid = truth < 255
        for c in range(5):
            tp, t, p = ((prediction == c) & (truth == c)).sum(), (truth == c).sum(), ((prediction == c) & valid).sum()
            found = confusion.true_positives[c], confusion.truth[c], confusion.predicted[c]
            assert found == (tp, t, p)
            assert confusion.iou()[c] == tp / (t + p - tp + 1e-10)
        assert confusion.matrix.sum() == valid.sum()

    def test_means_differ_in_the_classes_they_take(self) -> None:
        # Class 0 and 1 occur, 2 is only predicted, 3 and 4 are absent.
        confusion = counted(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 0, 1, 2]], np.uint8))
        np.testing.assert_allclose(confusion.iou(), [1, 0.5, 0, 0, 0])
        np.testing.assert_array_equal(confusion.iou_present(), [1, 0.5, 0, math.nan, math.nan])
        assert confusion.mean_iou == pytest.approx(1.5 / 5)
        assert confusion.mean_iou_present == 0.5
        assert confusion.mean_iou_in_truth == 0.75
        assert confusion.pixel_accuracy == 0.75
        assert confusion.mean_accuracy == 0.75
        assert confusion.frequency_weighted_iou == 0.75

    def test_void_predictions_cost_recall_and_unknown_truth_costs_precision(self) -> None:
        confusion = counted(np.array([[1, 1, 9, 255]], np.uint8), np.array([[1, 255, 1, 1]], np.uint8))
        assert (confusion.true_positives[1], confusion.truth[1], confusion.predicted[1]) == (1, 2, 2)
        report = confusion.to_dict()
        assert report["pixels_of_unknown_class"] == report["pixels_predicted_as_no_class"] == 1
        assert confusion.of_labelled_pixels().iou_present()[1] == 1

    def test_negative_labels_are_void(self) -> None:
        confusion = counted(np.array([[-1, 1]], np.int32), np.array([[1, -1]], np.int64))
        assert confusion.matrix.sum() == 1
        assert confusion.matrix[1, -1] == 1

    @untimed
    @given(label_pairs())
    def test_ratios_of_the_union_sum_to_one(self, pair) -> None:
        confusion = counted(*pair)
        total = confusion.iou_present() + confusion.false_positive_share() + confusion.false_negative_share()
        present = confusion.truth + confusion.predicted > 0
        np.testing.assert_allclose(total[present], 1)
        assert np.isnan(total[~present]).all()

    def test_all_void_has_no_score_but_counts_as_an_image(self) -> None:
        confusion = counted(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
        assert confusion.images == 1
        assert confusion.mean_iou == 0
        assert math.isnan(confusion.mean_iou_present)
        assert math.isnan(confusion.mean_iou_in_truth)
        assert math.isnan(confusion.pixel_accuracy)
        assert math.isnan(confusion.frequency_weighted_iou)

    def test_counts_do_not_wrap(self) -> None:
        confusion = counted(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
        for _ in range(40):
            confusion.merge(confusion)
        assert confusion.truth[0] == 2**40

    def test_255_classes_fit(self) -> None:
        everything = np.arange(256, dtype=np.uint8).reshape(16, 16)
        assert counted(everything, everything, 255).mean_iou == pytest.approx(1)


class TestThresholdCurve:
    @untimed
    @given(st.lists(scored_images(), min_size=1, max_size=3))
    def test_one_pass_equals_a_pass_for_each_threshold(self, images) -> None:
        curve = ThresholdCurve(5)
        plain = [Confusion(5) for _ in THRESHOLDS]
        for truth, labels, maps in images:
            curve.update(truth, labels, maps, "a")
            for threshold, confusion in zip(THRESHOLDS, plain, strict=True):
                confusion.update(truth, threshold_labels(labels, maps, threshold, 5), "a")
        for i, confusion in enumerate(plain):
            np.testing.assert_array_equal(curve.at(i).matrix, confusion.matrix)
            assert curve.at(i).images == len(images)
        np.testing.assert_array_equal(curve.mean_iou, [confusion.mean_iou for confusion in plain])
        np.testing.assert_array_equal(curve.mean_iou_present, [confusion.mean_iou_present for confusion in plain])

    def test_thresholds_are_compared_in_float32(self) -> None:
        curve = ThresholdCurve(2, [0.1])
        at, above = np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))
        curve.update(np.array([[1, 1]]), np.array([1]), np.array([[[at, above]]]), "a")
        assert curve.at(0).true_positives[1] == 1
        assert float(at) > 0.1

    def test_best_is_the_lowest_of_equal_thresholds(self) -> None:
        curve = ThresholdCurve(2, [0, 0.2, 0.4, 0.6])
        curve.update(np.array([[0, 1]]), np.array([1]), np.array([[[0.1, 0.5]]], np.float32), "a")
        assert curve.mean_iou[1] == curve.mean_iou[2] > curve.mean_iou[0]
        assert curve.best() == 1

    def test_half_precision_maps_are_widened(self) -> None:
        maps = np.array([[[0.3, 0.1]]], np.float16)
        half, full = ThresholdCurve(2), ThresholdCurve(2)
        half.update(np.array([[1, 0]]), np.array([1]), maps, "a")
        full.update(np.array([[1, 0]]), np.array([1]), maps.astype(np.float32), "a")
        np.testing.assert_array_equal(half.mean_iou, full.mean_iou)

    def test_negative_index_counts_from_the_end(self) -> None:
        curve = ThresholdCurve(2, [0, 0.2])
        curve.update(np.array([[1]]), np.array([1]), np.array([[[0.1]]], np.float32), "a")
        np.testing.assert_array_equal(curve.at(-1).matrix, curve.at(1).matrix)
        with pytest.raises(IndexError):
            curve.at(2)

    def test_thresholds_that_float32_cannot_tell_apart_are_taken_once(self) -> None:
        assert ThresholdCurve(2, [0.1, 0.1 + 1e-12, 0.2]).thresholds.tolist() == [0.1, 0.2]

    @pytest.mark.parametrize("thresholds", [[], [-0.1, 0.2], [0.1, math.nan], [0.1, math.inf], [[0.1]]])
    def test_bad_thresholds(self, thresholds) -> None:
        with pytest.raises(WeaksegError, match="list of numbers ≥ 0"):
            ThresholdCurve(2, thresholds)

    def test_descending_thresholds(self) -> None:
        with pytest.raises(WeaksegError, match="must ascend"):
            ThresholdCurve(2, [0.2, 0.1])


def contours_of(mask: np.ndarray) -> np.ndarray:
    """Coordinates (M, 2) of the pixels of a mask with a 4-neighbour in the image outside of it."""
    height, width = mask.shape
    return np.array(
        [
            (y, x)
            for y, x in np.argwhere(mask)
            if any(
                0 <= v < height and 0 <= u < width and not mask[v, u]
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            )
        ]
    ).reshape(-1, 2)


def share_within(points: np.ndarray, others: np.ndarray, radius: float, free: np.ndarray) -> float:
    """Share of `points` with one of `others` within `radius`; those in `free` only count if they have one."""
    matched = [any(((point - others) ** 2).sum(axis=1) <= radius**2) for point in points]
    counts = [hit or not free[tuple(point)] for point, hit in zip(points, matched, strict=True)]
    return sum(matched) / sum(counts) if sum(counts) else math.nan


def boundary_f_score(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, tolerance: float = BOUNDARY_TOLERANCE
) -> np.ndarray:
    score = BoundaryScore(num_classes, tolerance)
    score.update(truth, prediction, "a")
    return score.f_score()


def square(y: int, x: int, side: int = 20, size: int = 60) -> np.ndarray:
    labels = np.zeros((size, size), np.uint8)
    labels[y : y + side, x : x + side] = 1
    return labels


class TestBoundaryScore:
    @untimed
    @given(label_pairs(), st.sampled_from([0, 0.1, 0.2, 0.35]))
    def test_precision_and_recall_are_those_of_the_definition(self, pair, tolerance: float) -> None:
        truth, prediction = pair
        score = BoundaryScore(5, tolerance)
        score.update(truth, prediction, "a")
        radius = tolerance * math.hypot(*truth.shape)
        for c in range(5):
            true, predicted = contours_of(truth == c), contours_of(prediction == c)
            precision = share_within(predicted, true, radius, truth == 255)
            recall = share_within(true, predicted, radius, np.zeros(truth.shape, bool))
            np.testing.assert_equal(score.precision()[c], precision)
            np.testing.assert_equal(score.recall()[c], recall)

    def test_shift_within_the_tolerance_is_perfect_and_beyond_it_is_not(self) -> None:
        # The tolerance is 0.0236 of the diagonal of 84.9 pixels: 2.
        assert boundary_f_score(square(20, 20), square(20, 22), 2, 0.0236)[1] == 1
        assert boundary_f_score(square(20, 20), square(20, 23), 2, 0.0236)[1] < 1
        assert boundary_f_score(square(5, 5), square(35, 35), 2)[1] == 0

    def test_f_score_is_the_harmonic_mean(self) -> None:
        score = BoundaryScore(2, 0)
        score.update(square(20, 20), square(20, 20, side=21), "a")
        precision, recall = score.precision()[1], score.recall()[1]
        assert 0 < precision < recall < 1
        assert score.f_score()[1] == pytest.approx(2 / (1 / precision + 1 / recall))

    def test_missed_and_invented_classes_score_0_and_absent_ones_nothing(self) -> None:
        one, two = square(20, 20), 2 * square(20, 20)
        np.testing.assert_array_equal(boundary_f_score(one, two, 4), [1, 0, 0, math.nan])

    def test_image_border_is_no_contour(self) -> None:
        full = np.ones((8, 8), np.uint8)
        assert np.isnan(boundary_f_score(full, full, 2)).all()

    def test_contour_inside_a_band_of_void_is_right(self) -> None:
        truth = square(20, 20)
        band = square(18, 18, side=24).astype(bool) & ~square(20, 20).astype(bool)
        truth[band] = 255
        assert boundary_f_score(truth, square(19, 19, side=22), 2, 0.02)[1] == 1

    def test_contours_in_void_are_never_wrong(self) -> None:
        truth = square(5, 5)
        truth[:, 35:] = 255
        prediction = square(5, 5)
        prediction[30:50, 40:55] = 1
        assert boundary_f_score(truth, prediction, 2)[1] == 1

    @pytest.mark.parametrize("tolerance", [-0.1, 1, math.nan])
    def test_bad_tolerance(self, tolerance: float) -> None:
        with pytest.raises(WeaksegError, match="fraction of the image diagonal"):
            BoundaryScore(2, tolerance)


def updated(kind: type[Accumulator], seed: int) -> Accumulator:
    rng = np.random.default_rng(seed)
    accumulator = kind(4)
    truth, prediction = rng.integers(0, 4, (2, 6, 7))
    if isinstance(accumulator, ThresholdCurve):
        accumulator.update(truth, np.array([3, 1]), rng.random((2, 6, 7)), "a")
    else:
        accumulator.update(truth, prediction, "a")
    return accumulator


def merged(parts: Sequence[Accumulator]) -> Accumulator:
    total = type(parts[0])(4)
    for part in parts:
        total.merge(part)
    return total


@pytest.mark.parametrize("kind", [Confusion, ThresholdCurve, BoundaryScore])
class TestAccumulators:
    def test_sums_do_not_depend_on_order_or_process(self, kind) -> None:
        parts = [updated(kind, seed) for seed in range(4)]
        forwards, backwards = merged(parts), merged(parts[::-1])
        reduced = kind(4)
        reduced.add_state({name: sum(part.state()[name] for part in parts) for name in parts[0].state()})
        assert forwards.images == 4
        assert forwards.to_dict() == backwards.to_dict() == reduced.to_dict()

    def test_state_is_int64_and_a_copy(self, kind) -> None:
        accumulator = updated(kind, 0)
        before = accumulator.to_dict()
        for counts in accumulator.state().values():
            assert counts.dtype == np.int64
            counts += 1
        assert accumulator.to_dict() == before

    def test_json_has_no_nan(self, kind) -> None:
        accumulator = kind(9)
        zeros = np.zeros((2, 2), np.uint8)
        maps = (np.zeros(0, np.int16), np.zeros((0, 2, 2), np.float32))
        accumulator.update(zeros, *(maps if kind is ThresholdCurve else (zeros,)), "a")
        assert json.loads(json.dumps(accumulator.to_dict(), allow_nan=False)) == accumulator.to_dict()
        assert "null" in json.dumps(accumulator.to_dict())

    def test_no_image_has_no_score(self, kind) -> None:
        with pytest.raises(WeaksegError, match="No image was evaluated"):
            kind(4).to_dict()

    def test_other_settings_are_not_added(self, kind) -> None:
        with pytest.raises(WeaksegError, match="different settings"):
            kind(4).merge(kind(5))
        with pytest.raises(WeaksegError, match="another evaluation"):
            kind(4).add_state(kind(5).state())

    @pytest.mark.parametrize("num_classes", [1, 40_000])
    def test_number_of_classes(self, kind, num_classes: int) -> None:
        with pytest.raises(WeaksegError, match="counts the background too"):
            kind(num_classes)


def test_scores_of_many_classes_are_those_of_their_numbers_without_the_gap() -> None:
    """As with labels 1 … C throughout, which Confusion and BoundaryScore know from maps with few classes."""
    rng = np.random.default_rng(0)
    # Classes 252 … 257, once as the labels that they have among 300 and once as 1 … 6.
    wide, narrow = np.array([0, 252, 253, 256, 257, 258, 259, VOID], np.uint16), np.array([*range(7), VOID], np.uint8)
    places = rng.integers(0, 8, (2, 9, 9))
    for kind in (Confusion, BoundaryScore):
        many, few = kind(303), kind(7)
        many.update(wide[places[0]], wide[places[1]], "x")
        few.update(narrow[places[0]], narrow[places[1]], "x")
        found, expected = many.to_dict(), few.to_dict()
        for name in ("mean_iou_present", "pixel_accuracy", "pixels_predicted_as_no_class", "mean_f_score"):
            assert found.get(name) == expected.get(name)
        name = "iou" if kind is Confusion else "f_score"
        assert [value for value in found[name] if value is not None] == expected[name]
        assert len(found[name]) == 301


def test_curves_with_other_thresholds_are_not_added() -> None:
    with pytest.raises(WeaksegError, match="different settings"):
        ThresholdCurve(2, [0.1, 0.2]).merge(ThresholdCurve(2, [0.1, 0.3]))


plain = np.zeros((4, 5), np.uint8)
bad_label_maps = {
    "colour image": (np.zeros((4, 5, 3), np.uint8), "colour image"),
    "no pixels": (np.zeros((0, 5), np.uint8), r"shape \(0, 5\)"),
    "probabilities": (np.zeros((4, 5), np.float32), "float32"),
    "booleans": (np.zeros((4, 5), bool), "bool"),
    "large labels": (np.full((4, 5), 70_000), "label 70000"),
}


@pytest.mark.parametrize("array, message", bad_label_maps.values(), ids=bad_label_maps)
@pytest.mark.parametrize("kind", [Confusion, BoundaryScore])
def test_bad_label_maps_are_named_and_not_counted(kind, array: np.ndarray, message: str) -> None:
    accumulator = kind(3)
    for pair in ((array, plain), (plain, array)):
        with pytest.raises(WeaksegError, match=f"^cat/1: the (ground truth|prediction) .*{message}"):
            accumulator.update(*pair, "cat/1")
    assert not any(counts.any() for counts in accumulator.state().values())


def test_sizes_differ() -> None:
    with pytest.raises(
        WeaksegError, match=r"^cat/1: the size of the prediction is 4 × 5, that of the ground truth 5 × 4"
    ):
        Confusion(3).update(plain, plain.T, "cat/1")
    with pytest.raises(WeaksegError, match=r"^cat/1: the size of the activation maps is 3 × 2"):
        ThresholdCurve(3).update(plain, np.array([1]), np.zeros((1, 2, 3), np.float32), "cat/1")


maps = np.zeros((2, 4, 5), np.float32)
bad_activation_maps = {
    "labels and maps differ in number": ([1], maps, r"expected \(K,\) and \(K, H, W\)"),
    "one map without its axis": ([1], maps[0], r"expected \(K,\) and \(K, H, W\)"),
    "integers": ([1, 2], maps.astype(np.uint8), "uint8"),
    "background has no map": ([0, 1], maps, r"\[0, 1\]; expected different ones in 1 … 2"),
    "unknown class": ([1, 3], maps, r"\[1, 3\]; expected different ones in 1 … 2"),
    "class twice": ([2, 2], maps, r"\[2, 2\]; expected different ones"),
    "no number": ([1, 2], maps + np.float32(np.nan), "NaN"),
}


@pytest.mark.parametrize("labels, maps, message", bad_activation_maps.values(), ids=bad_activation_maps)
def test_bad_activation_maps_are_named_and_not_counted(labels: list[int], maps: np.ndarray, message: str) -> None:
    curve = ThresholdCurve(3)
    with pytest.raises(WeaksegError, match=f"^cat/1: .*{message}"):
        curve.update(plain, np.array(labels), maps, "cat/1")
    assert curve.images == 0
