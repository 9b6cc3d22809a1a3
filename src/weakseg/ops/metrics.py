"""How good label maps and activation maps are: IoU, the background-score curve, boundary F-score.

Everything is counted in integers, image by image, and turned into scores at the end. Counts of several processes or
threads are added with `merge`, or with `state` and `add_state` around an all-reduce; the order never matters.
Scores are fractions of 1. Label maps follow `weakseg.labels`: 0 background, 255 void.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.ops.compiled import compiled

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

THRESHOLDS = tuple(i / 100 for i in range(60))
"""The background scores 0.00, 0.01, …, 0.59 of AffinityNet's and SEAM's evaluation."""

BOUNDARY_TOLERANCE = 0.0075
"""Distance up to which two contours match, as a fraction of the image diagonal (Csurka et al. 2013)."""


class Accumulator:
    """Integer counts that are summed over images."""

    def __init__(self, num_classes: int, **counts: Counts) -> None:
        if not 2 <= num_classes <= VOID:
            raise WeaksegError(f"num_classes is {num_classes}; it counts the background too: 2 … {VOID}.")
        self.num_classes = num_classes
        self._counts = {"images": np.zeros(1, np.int64), **counts}

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self._counts["images"][0])

    def state(self) -> dict[str, Counts]:
        """A copy of all counts: int64 arrays whose shapes depend on the settings alone."""
        return {name: counts.copy() for name, counts in self._counts.items()}

    def add_state(self, state: Mapping[str, Array]) -> None:
        """Add counts that `state` of an accumulator with the same settings returned.

        Raises `WeaksegError` where names or shapes differ; nothing is added then.
        """
        expected = {name: counts.shape for name, counts in self._counts.items()}
        found = {name: counts.shape for name, counts in state.items()}
        if found != expected:
            raise WeaksegError(f"Counts of another evaluation: they have the shapes {found}, expected {expected}.")
        for name, counts in self._counts.items():
            counts += state[name]

    def merge(self, other: Self) -> None:
        """Add the counts of other images; raises `WeaksegError` if they were counted with other settings."""
        if self._settings() != other._settings():
            raise WeaksegError(
                f"Evaluations with different settings cannot be added: {self._settings()} and {other._settings()}."
            )
        self.add_state(other._counts)

    def __add__(self, other: Self) -> Self:
        total = copy.deepcopy(self)
        total.merge(other)
        return total

    def _settings(self) -> tuple[object, ...]:
        return type(self).__name__, self.num_classes

    def _require_images(self) -> None:
        if self.images == 0:
            raise WeaksegError("No image was evaluated, so there is no score. Is the list of images empty?")


class Confusion(Accumulator):
    """How often each true label was predicted as each label, over the pixels whose ground truth is not void.

    `num_classes` includes the background (21 for PASCAL VOC). A true label that is no class (num_classes … 254)
    cannot be predicted right, it only counts as predicted pixels; a predicted label that is no class, void among
    them, only counts as true pixels.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, matrix=np.zeros((num_classes + 1, num_classes + 1), np.int64))

    def update(self, truth: Array, prediction: Array, name: str) -> None:
        """Count one image.

        Both label maps are integers (H, W); negative values are void. Raises `WeaksegError` naming the image for
        anything else and for different sizes; nothing is counted then.
        """
        truth, prediction = _pair(truth, prediction, name)
        _count_pairs(self.matrix, truth.ravel(), prediction.ravel())
        self._counts["images"] += 1

    @property
    def matrix(self) -> Counts:
        """Pixels (num_classes + 1, num_classes + 1): true label × predicted label, "no class" last in both."""
        return self._counts["matrix"]

    @property
    def true_positives(self) -> Counts:
        """TP (num_classes,): pixels of each class that were predicted as this class."""
        return self.matrix.diagonal()[:-1]

    @property
    def truth(self) -> Counts:
        """T (num_classes,): pixels of each class."""
        return self.matrix.sum(axis=1)[:-1]

    @property
    def predicted(self) -> Counts:
        """P (num_classes,): pixels that were predicted as each class."""
        return self.matrix.sum(axis=0)[:-1]

    def iou(self) -> Scores:
        """IoU (num_classes,) as AffinityNet and SEAM define it: TP / (T + P - TP + 1e-10), so 0 for an absent class."""
        self._require_images()
        return self.true_positives / (self.truth + self.predicted - self.true_positives + 1e-10)

    def iou_present(self) -> Scores:
        """IoU (num_classes,): TP / (T + P - TP); NaN for a class that is neither in the truth nor predicted."""
        self._require_images()
        return _ratio(self.true_positives, self.truth + self.predicted - self.true_positives)

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over all classes, absent ones with 0: the mIoU of AffinityNet, SEAM and their descendants."""
        return float(self.iou().mean())

    @property
    def mean_iou_present(self) -> float:
        """Mean IoU over the classes that occur in the truth or in a prediction (IRNet); NaN if there are none."""
        return _mean_of_numbers(self.iou_present())

    @property
    def mean_iou_in_truth(self) -> float:
        """Mean IoU over the classes that occur in the truth (DeepLab); NaN if there are none."""
        return _mean_of_numbers(self.iou_present()[self.truth > 0])

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that were predicted right; NaN if all pixels are void."""
        self._require_images()
        return float(_ratio(self.true_positives.sum(), self.matrix.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of TP / T over the classes that occur in the truth; NaN if there are none."""
        self._require_images()
        return _mean_of_numbers(_ratio(self.true_positives, self.truth))

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of IoU, weighted by T, over the classes that occur in the truth; NaN if there are none."""
        iou = self.iou_present()
        occurs = self.truth > 0
        return float(_ratio(self.truth[occurs] @ iou[occurs], self.matrix.sum()))

    def false_positive_share(self) -> Scores:
        """(P - TP) / (T + P - TP) (num_classes,): how far a class spills over; NaN for an absent class."""
        self._require_images()
        return _ratio(self.predicted - self.true_positives, self.truth + self.predicted - self.true_positives)

    def false_negative_share(self) -> Scores:
        """(T - TP) / (T + P - TP) (num_classes,): how much of a class is missed; NaN for an absent class."""
        self._require_images()
        return _ratio(self.truth - self.true_positives, self.truth + self.predicted - self.true_positives)

    def of_labelled_pixels(self) -> Confusion:
        """The same, without the pixels whose true or predicted label is no class.

        This is how masks that leave pixels open (255) are judged: only on what they say (ICD's seeds).
        """
        labelled = copy.deepcopy(self)
        labelled.matrix[-1] = 0
        labelled.matrix[:, -1] = 0
        return labelled

    def to_dict(self) -> dict[str, Any]:
        """All scores and counts for a JSON file; a score that is not defined is None."""
        return {
            "num_classes": self.num_classes,
            "images": self.images,
            "pixels": int(self.matrix.sum()),
            "mean_iou": _json(self.mean_iou),
            "mean_iou_present": _json(self.mean_iou_present),
            "mean_iou_in_truth": _json(self.mean_iou_in_truth),
            "pixel_accuracy": _json(self.pixel_accuracy),
            "mean_accuracy": _json(self.mean_accuracy),
            "frequency_weighted_iou": _json(self.frequency_weighted_iou),
            "iou": _json(self.iou_present()),
            "false_positive_share": _json(self.false_positive_share()),
            "false_negative_share": _json(self.false_negative_share()),
            "pixels_of_unknown_class": int(self.matrix[-1].sum()),
            "pixels_predicted_as_no_class": int(self.matrix[:, -1].sum()),
            "matrix": self.matrix.tolist(),
        }


class ThresholdCurve(Accumulator):
    """The `Confusion` of activation maps at every background score of a list, from one pass over the pixels.

    A pixel with the best class score s is foreground at threshold t if and only if s > t, compared in float32
    (the evaluation of AffinityNet and SEAM: a constant map t is put before the class maps, and the first maximum
    wins). So only the number b of thresholds below s matters, and counting pixels by (true label,
    best class, b) gives all confusions exactly.

    `thresholds` are not negative and ascend; those that float32 cannot tell apart are taken once.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] = THRESHOLDS) -> None:
        given = np.asarray(thresholds, np.float64)
        if not (given.ndim == 1 and given.size and given.min() >= 0 and np.isfinite(given).all()):
            raise WeaksegError(f"Thresholds of the curve are a list of numbers ≥ 0; found {thresholds}.")
        if (np.diff(given) < 0).any():
            raise WeaksegError(f"Thresholds of the curve must ascend; found {thresholds}.")
        self._levels, first = np.unique(given.astype(np.float32), return_index=True)
        self.thresholds: Scores = given[first]
        super().__init__(
            num_classes, histogram=np.zeros((num_classes + 1, num_classes, len(self._levels) + 1), np.int64)
        )

    def update(self, truth: Array, labels: Array, maps: Array, name: str) -> None:
        """Count one image.

        `truth` is a label map (H, W), `labels` (K,) the classes (1 … num_classes - 1) of `maps` (K, H, W), a float
        type; in any order, K may be 0. Maps of other types than float32 are converted to it first. Raises
        `WeaksegError` naming the image for anything else, for different sizes and for NaN; nothing is counted then.
        """
        truth = _label_map(truth, "ground truth", name)
        labels, maps = _activation_maps(labels, maps, self.num_classes, name)
        _check_same_size(truth, maps.shape[1:], "activation maps", name)
        _count_scores(
            self._counts["histogram"], truth.ravel(), labels, maps.reshape(len(labels), truth.size), self._levels
        )
        self._counts["images"] += 1

    def __len__(self) -> int:
        return len(self.thresholds)

    def at(self, index: int) -> Confusion:
        """The confusion at `thresholds[index]`, equal in every count to that of `threshold_labels`."""
        index = range(len(self))[index]
        histogram = self._counts["histogram"]
        foreground = histogram[:, 1:, index + 1 :].sum(axis=2)
        confusion = Confusion(self.num_classes)
        confusion.matrix[:, 0] = histogram.sum(axis=(1, 2)) - foreground.sum(axis=1)
        confusion.matrix[:, 1:-1] = foreground
        confusion._counts["images"][:] = self.images
        return confusion

    @property
    def mean_iou(self) -> Scores:
        """`Confusion.mean_iou` at each threshold."""
        return np.array([self.at(i).mean_iou for i in range(len(self))])

    @property
    def mean_iou_present(self) -> Scores:
        """`Confusion.mean_iou_present` at each threshold."""
        return np.array([self.at(i).mean_iou_present for i in range(len(self))])

    def best(self) -> int:
        """The index of the threshold with the largest `mean_iou`, the lowest of equal ones."""
        return int(self.mean_iou.argmax())

    def to_dict(self) -> dict[str, Any]:
        """The curve and its best point for a JSON file."""
        best = self.best()
        return {
            "images": self.images,
            "thresholds": self.thresholds.tolist(),
            "mean_iou": _json(self.mean_iou),
            "mean_iou_present": _json(self.mean_iou_present),
            "best_threshold": float(self.thresholds[best]),
            "best": self.at(best).to_dict(),
        }

    def _settings(self) -> tuple[object, ...]:
        return *super()._settings(), tuple(self._levels.tolist())


def threshold_labels(labels: Array, maps: Array, threshold: float, num_classes: int, name: str = "image") -> Labels:
    """The label map (H, W) of activation maps with a constant background score, by the definition.

    The scores of all classes are compared in float32: `threshold` for the background, `maps` (K, H, W) for the classes
    `labels` (K,), and 0 for absent classes. The largest wins, the lowest label among equals. Below a threshold of
    0, absent classes can win.
    """
    labels, maps = _activation_maps(labels, maps, num_classes, name)
    if math.isnan(threshold):
        raise WeaksegError("The threshold is not a number.")
    # All absent classes score 0, so the first of them stands for the others.
    absent = np.setdiff1d(np.arange(1, num_classes), labels)[:1]
    candidates = np.unique(np.concatenate([[0], labels, absent]))
    scores = np.zeros((len(candidates), *maps.shape[1:]), np.float32)
    scores[0] = threshold
    scores[np.searchsorted(candidates, labels)] = maps
    return candidates.astype(np.uint8)[scores.argmax(axis=0)]


class BoundaryScore(Accumulator):
    """Boundary F-score per class: do the contours lie where they should?

    Csurka, Larlus, Perronnin: What is a good evaluation measure for semantic segmentation?, BMVC 2013, section 3;
    the F of Perazzi et al., CVPR 2016 (DAVIS). Precision is the share of the predicted contour pixels of a class
    that have a true contour pixel of this class within `tolerance` · image diagonal, recall the reverse,
    F = 2 · precision · recall / (precision + recall).

    Contour pixels are pixels of a class with another label above, below, left or right of them. A contour towards void
    counts, since data sets like PASCAL VOC draw void along all contours; but a predicted contour pixel in void is
    never wrong: it is left out unless it matches.

    The papers average over images. Here contour pixels are pooled over images like the pixels of mIoU; for the score
    of one image use `boundary_f_score`.
    """

    def __init__(self, num_classes: int, tolerance: float = BOUNDARY_TOLERANCE) -> None:
        if not 0 <= tolerance < 1:
            raise WeaksegError(
                f"The boundary tolerance is a fraction of the image diagonal (0 … 1); found {tolerance}."
            )
        names = ("truth", "truth_matched", "predicted", "predicted_matched")
        super().__init__(num_classes, **{name: np.zeros(num_classes, np.int64) for name in names})
        self.tolerance = tolerance

    def update(self, truth: Array, prediction: Array, name: str) -> None:
        """Count one image; the label maps and errors are those of `Confusion.update`."""
        truth, prediction = _pair(truth, prediction, name)
        true_contours, predicted_contours = _contours(truth), _contours(prediction)
        disk = _disk(self.tolerance * math.hypot(*truth.shape))
        found = _matches(true_contours, predicted_contours, disk)
        right = _matches(predicted_contours, true_contours, disk)
        self._add("truth", true_contours)
        self._add("truth_matched", true_contours[found])
        self._add("predicted", predicted_contours[right | (truth != VOID)])
        self._add("predicted_matched", predicted_contours[right])
        self._counts["images"] += 1

    def _add(self, name: str, contours: Labels) -> None:
        self._counts[name] += np.bincount(contours.ravel(), minlength=VOID + 1)[: self.num_classes]

    def precision(self) -> Scores:
        """(num_classes,); NaN where no contour was predicted."""
        self._require_images()
        return _ratio(self._counts["predicted_matched"], self._counts["predicted"])

    def recall(self) -> Scores:
        """(num_classes,); NaN where there is no true contour."""
        self._require_images()
        return _ratio(self._counts["truth_matched"], self._counts["truth"])

    def f_score(self) -> Scores:
        """(num_classes,); 0 where only one side has contours, NaN where neither has."""
        precision, recall = np.nan_to_num(self.precision()), np.nan_to_num(self.recall())
        f_score = np.nan_to_num(_ratio(2 * precision * recall, precision + recall))
        return np.where(self._counts["truth"] + self._counts["predicted"] > 0, f_score, np.nan)

    @property
    def mean_f_score(self) -> float:
        """Mean of `f_score` over the classes with any contour; NaN if there are none."""
        return _mean_of_numbers(self.f_score())

    def to_dict(self) -> dict[str, Any]:
        """All scores for a JSON file; a score that is not defined is None."""
        return {
            "images": self.images,
            "tolerance": self.tolerance,
            "mean_f_score": _json(self.mean_f_score),
            "f_score": _json(self.f_score()),
            "precision": _json(self.precision()),
            "recall": _json(self.recall()),
        }

    def _settings(self) -> tuple[object, ...]:
        return *super()._settings(), self.tolerance


def boundary_f_score(
    truth: Array, prediction: Array, num_classes: int, tolerance: float = BOUNDARY_TOLERANCE, name: str = "image"
) -> Scores:
    """The boundary F-score (num_classes,) of one image, NaN for a class without contours; see `BoundaryScore`."""
    score = BoundaryScore(num_classes, tolerance)
    score.update(truth, prediction, name)
    return score.f_score()


def _pair(truth: Array, prediction: Array, name: str) -> tuple[Labels, Labels]:
    """Ground truth and prediction of one image, checked."""
    truth, prediction = _label_map(truth, "ground truth", name), _label_map(prediction, "prediction", name)
    _check_same_size(truth, prediction.shape, "prediction", name)
    return truth, prediction


def _label_map(labels: Array, what: str, name: str) -> Labels:
    """A checked label map (H, W); negative labels become void."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0:
        colour = " It looks like a colour image: read palette PNGs as indices." if labels.ndim == 3 else ""
        raise WeaksegError(f"{name}: the {what} has shape {labels.shape}; expected a label map (H, W).{colour}")
    if labels.dtype.kind not in "iu":
        raise WeaksegError(f"{name}: the {what} is of type {labels.dtype}; expected labels as whole numbers (uint8).")
    if labels.dtype == np.uint8:
        return labels
    if labels.max() > VOID:
        raise WeaksegError(f"{name}: the {what} holds the label {labels.max()}; labels are 0 … 254, 255 for void.")
    return np.where(labels < 0, VOID, labels).astype(np.uint8)


def _activation_maps(
    labels: Array, maps: Array, num_classes: int, name: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Checked labels (K,) in ascending order and their maps (K, H, W) as float32."""
    labels, maps = np.asarray(labels), np.asarray(maps)
    if labels.ndim != 1 or maps.ndim != 3 or len(labels) != len(maps):
        raise WeaksegError(
            f"{name}: found labels of shape {labels.shape} and activation maps of shape {maps.shape}; "
            "expected (K,) and (K, H, W)."
        )
    if maps.dtype.kind != "f":
        raise WeaksegError(f"{name}: the activation maps are of type {maps.dtype}; expected float32.")
    foreground = np.isin(labels, np.arange(1, num_classes))
    if not foreground.all() or len(np.unique(labels)) < len(labels):
        raise WeaksegError(
            f"{name}: the activation maps have the labels {labels.tolist()}; expected different ones "
            f"in 1 … {num_classes - 1}."
        )
    if np.isnan(maps).any():
        raise WeaksegError(f"{name}: the activation maps hold NaN. Delete them and compute them anew.")
    order = np.argsort(labels)
    return labels[order].astype(np.int64), np.ascontiguousarray(maps[order], np.float32)


def _check_same_size(truth: Labels, size: tuple[int, ...], what: str, name: str) -> None:
    if truth.shape != size:
        raise WeaksegError(
            f"{name}: the size of the {what} is {size[1]} × {size[0]}, that of the ground truth {truth.shape[1]} × "
            f"{truth.shape[0]} pixels (width × height). Both must come from the same image, without resizing."
        )


def _contours(labels: Labels) -> Labels:
    """The label of every pixel with a neighbour of another label, VOID elsewhere."""
    different = np.zeros(labels.shape, bool)
    below, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    different[1:] |= below
    different[:-1] |= below
    different[:, 1:] |= right
    different[:, :-1] |= right
    return np.where(different, labels, np.uint8(VOID))


def _disk(radius: float) -> npt.NDArray[np.int64]:
    """All offsets (M, 2) = (dy, dx) up to `radius` pixels long, the shortest first."""
    reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
    offsets = np.stack(np.meshgrid(reach, reach, indexing="ij"), axis=-1).reshape(-1, 2)
    lengths = (offsets**2).sum(axis=1)
    nearest_first = np.argsort(lengths, kind="stable")
    return offsets[nearest_first][lengths[nearest_first] <= radius**2]


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Elementwise quotient, NaN where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0)


def _mean_of_numbers(values: Scores) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if numbers.size else math.nan


def _json(values: Scores | float) -> Any:
    """Numbers as JSON takes them: None for NaN."""
    if isinstance(values, float):
        return None if math.isnan(values) else values
    return [_json(value) for value in values.tolist()]


@compiled()
def _count_pairs(matrix: Counts, truth: Labels, prediction: Labels) -> None:
    """Count pixels by (true label, predicted label); labels that are no class share the last row and column."""
    no_class = matrix.shape[0] - 1
    for i in range(truth.size):
        if truth[i] != VOID:
            matrix[min(truth[i], no_class), min(prediction[i], no_class)] += 1


@compiled()
def _count_scores(
    histogram: Counts,
    truth: Labels,
    labels: npt.NDArray[np.int64],
    maps: npt.NDArray[np.float32],
    levels: npt.NDArray[np.float32],
) -> None:
    """Count pixels by (true label, label of the first largest score, number of levels below this score)."""
    no_class = histogram.shape[0] - 1
    for i in range(truth.size):
        if truth[i] == VOID:
            continue
        label, score = 0, np.float32(-np.inf)
        for k in range(labels.size):
            if maps[k, i] > score:
                label, score = labels[k], maps[k, i]
        low, high = 0, levels.size
        while low < high:
            middle = (low + high) // 2
            if levels[middle] < score:
                low = middle + 1
            else:
                high = middle
        histogram[min(truth[i], no_class), label, low] += 1


@compiled()
def _matches(contours: Labels, others: Labels, disk: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Where a contour pixel has one of the same label among `others` within `disk`."""
    height, width = contours.shape
    matched = np.zeros((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            if contours[y, x] == VOID:
                continue
            for dy, dx in disk:
                v, u = y + dy, x + dx
                if 0 <= v < height and 0 <= u < width and others[v, u] == contours[y, x]:
                    matched[y, x] = True
                    break
    return matched
