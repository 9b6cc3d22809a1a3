"""Scores against the reference vectors: counts exactly, scores within each specification's tolerance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from definitions import threshold_labels
from weakseg.ops.confusion import Confusion
from weakseg.ops.threshold_curve import ThresholdCurve

Vectors = Mapping[str, np.ndarray]


def counts(confusion: Confusion) -> np.ndarray:
    return np.stack([confusion.true_positives, confusion.predicted, confusion.truth])


@pytest.fixture(scope="module")
def vectors(parity) -> Vectors:
    return parity("evaluation/evaluation")


@pytest.fixture(scope="module")
def curve(vectors: Vectors) -> ThresholdCurve:
    curve = ThresholdCurve(len(vectors["categories"]))
    for i, name in enumerate(vectors["names"]):
        curve.update(vectors[f"gt_{i}"], vectors[f"cam_keys_{i}"] + 1, vectors[f"cam_{i}"], name)
    return curve


def test_label_maps(vectors: Vectors) -> None:
    confusion = Confusion(len(vectors["categories"]))
    for i, name in enumerate(vectors["names"]):
        confusion.update(vectors[f"gt_{i}"], vectors[f"pred_{i}"], name)
    np.testing.assert_array_equal(counts(confusion), vectors["label_counts"])
    np.testing.assert_array_equal(100 * confusion.iou(), vectors["label_iou"])
    assert abs(100 * confusion.mean_iou - vectors["label_miou"]) <= 1e-12


def test_curve_in_one_pass(vectors: Vectors, curve: ThresholdCurve) -> None:
    np.testing.assert_array_equal(curve.thresholds, vectors["curve_threshold"])
    for i in range(len(curve)):
        np.testing.assert_array_equal(counts(curve.at(i)), vectors["curve_counts"][i])
        np.testing.assert_array_equal(100 * curve.at(i).iou(), vectors["curve_iou"][i])
    np.testing.assert_allclose(100 * curve.mean_iou, vectors["curve_miou"], rtol=0, atol=1e-12)
    assert curve.best() == vectors["curve_miou"].argmax()


@pytest.mark.parametrize("which", ["curve", "negative"])
def test_threshold_by_definition(vectors: Vectors, which: str) -> None:
    thresholds = np.atleast_1d(vectors[f"{which}_threshold"])
    for i in range(0, len(thresholds), 7):
        confusion = Confusion(len(vectors["categories"]))
        for k, name in enumerate(vectors["names"]):
            labels, maps = vectors[f"cam_keys_{k}"] + 1, vectors[f"cam_{k}"]
            prediction = threshold_labels(labels, maps, thresholds[i], confusion.num_classes)
            confusion.update(vectors[f"gt_{k}"], prediction, name)
        classes = len(vectors["categories"])
        np.testing.assert_array_equal(counts(confusion), vectors[f"{which}_counts"].reshape(-1, 3, classes)[i])
        np.testing.assert_array_equal(100 * confusion.iou(), vectors[f"{which}_iou"].reshape(-1, classes)[i])
        assert abs(100 * confusion.mean_iou - np.atleast_1d(vectors[f"{which}_miou"])[i]) <= 1e-12


@pytest.mark.cases("deeplab/metric", "confusion*")
def test_deeplab_scores(parity, case: str) -> None:
    vectors = parity("deeplab/metric")
    confusion = Confusion(int(vectors["n_class"]))
    for k in parity.cases(vectors, f"gt{case}_*"):
        confusion.update(vectors[f"gt{case}_{k}"], vectors[f"pred{case}_{k}"], f"{case}_{k}")
    np.testing.assert_array_equal(confusion.matrix[:-1, :-1], vectors[f"confusion{case}"])
    scores = {
        "Pixel Accuracy": confusion.pixel_accuracy,
        "Mean Accuracy": confusion.mean_accuracy,
        "Frequency Weighted IoU": confusion.frequency_weighted_iou,
        "Mean IoU": confusion.mean_iou_in_truth,
    }
    found = [scores[name] for name in vectors["score_names"]]
    np.testing.assert_allclose(found, vectors[f"scores{case}"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(confusion.iou_present(), vectors[f"class_iou{case}"], rtol=0, atol=1e-12)


def test_irnet_label_maps(parity) -> None:
    vectors = parity("irnet/eval")
    confusion = Confusion(len(vectors["sem_iou"]))
    for k, (truth, prediction) in enumerate(zip(vectors["gt"], vectors["pred"], strict=True)):
        confusion.update(truth, np.where(prediction == 255, 0, prediction), str(k))
    np.testing.assert_allclose(confusion.iou_present(), vectors["sem_iou"], rtol=0, atol=1e-9)
    assert abs(confusion.mean_iou_present - vectors["sem_miou"]) <= 1e-9
    # The mean over the other classes is NaN where one of them is absent.
    background = confusion.false_positive_share()[0], confusion.false_negative_share()[0]
    np.testing.assert_allclose(background, vectors["sem_background_fp_fn"], rtol=0, atol=1e-9)
    foreground = confusion.false_positive_share()[1:].mean(), confusion.false_negative_share()[1:].mean()
    np.testing.assert_allclose(foreground, vectors["sem_foreground_fp_fn"], rtol=0, atol=1e-9)


def test_irnet_activation_maps(parity) -> None:
    vectors = parity("irnet/eval")
    curve = ThresholdCurve(len(vectors["cam_iou"]), [float(vectors["cam_eval_thres"])])
    for k, truth in enumerate(vectors["gt"]):
        curve.update(truth, vectors["cam_keys"] + 1, vectors[f"cams_{k}"], str(k))
    np.testing.assert_allclose(curve.at(0).iou_present(), vectors["cam_iou"], rtol=0, atol=1e-9)
    assert abs(curve.at(0).mean_iou_present - vectors["cam_miou"]) <= 1e-9


def test_icd_seeds_are_judged_where_they_speak(parity) -> None:
    vectors = parity("icd/miou")
    confusion = Confusion(len(vectors["iou"]))
    for k in parity.cases(vectors, "gt*"):
        confusion.update(vectors[f"gt{k}"], vectors[f"pred{k}"], k)
    np.testing.assert_allclose(confusion.of_labelled_pixels().iou(), vectors["iou"], rtol=0, atol=1e-5)


def test_spml_scores(parity) -> None:
    vectors = parity("spml/benchmark")
    total = Confusion(vectors["stats"].shape[-1])
    for k, expected in enumerate(vectors["stats"]):
        confusion = Confusion(total.num_classes)
        confusion.update(vectors[f"gt{k}"], vectors[f"pred{k}"], str(k))
        found = np.stack([confusion.truth, confusion.predicted, confusion.true_positives])
        np.testing.assert_array_equal(found, expected)
        total.merge(confusion)
    np.testing.assert_allclose(100 * total.iou(), vectors["mIoU_per_class"], rtol=0, atol=5e-4)
    assert abs(100 * total.mean_iou - vectors["mIoU_mean"]) <= 5e-4
