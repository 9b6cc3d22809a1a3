"""The dense CRF against vectors of the reference implementation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mean_field import MeanField, PairwiseKernel, softmax
from reference import agrees
from weakseg.ops import densecrf, densecrf_torch
from weakseg.ops.crf_features import bilateral_features, gaussian_features
from weakseg.ops.crf_parameters import PARAMETERS, CRFParameters
from weakseg.ops.crf_unary import SMALLEST_PROBABILITY, unary_from_labels, unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.densecrf_torch import Lattices
from weakseg.ops.lattice_filter import gaussian_filter
from weakseg.ops.permutohedral import Lattice, embed

HALF_SCALE = replace(PARAMETERS["affinitynet"], gaussian_sxy=1.5, bilateral_sxy=40.0)  # of an image reduced by 2
TOLERANCES = {0: 1e-6, 1: 1e-5, 5: 1e-4, 10: 1e-3}


@pytest.fixture(params=["compiled", "torch"])
def both_forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dense_crf` in its form for the CPU, and in that for other devices."""
    if request.param == "torch":
        monkeypatch.setattr(densecrf, "_mean_field_on_cpu", densecrf._mean_field_on_device)


def ids(vertices: np.ndarray, absent: int) -> np.ndarray:
    return np.where(vertices == absent, -1, vertices.astype(np.int64))


def unary(vectors: dict[str, np.ndarray], name: str = "") -> np.ndarray:
    return vectors[f"{name}unary_times_16"].astype(np.float32) / np.float32(16)


def test_lattice_is_the_reference_lattice(parity: Any) -> None:
    vectors = parity("densecrf/lattice")
    for case in parity.cases(vectors, "*_features"):
        features, offsets = vectors[f"{case}_features"], vectors[f"{case}_offset"]
        lattice = Lattice.of(features)
        simplices = embed(np.ascontiguousarray(features.T))
        assert lattice.vertices == vectors[f"{case}_vertices"], case
        np.testing.assert_array_equal(simplices.rank.T, vectors[f"{case}_rank"], case)
        np.testing.assert_array_equal(lattice.weights, vectors[f"{case}_bary"], case)
        # Both number vertices by first visit; those of the padding, which no pixel uses, come last.
        np.testing.assert_array_equal(lattice.offsets, offsets, case)
        np.testing.assert_array_equal(ids(lattice.neighbours[:, 0], lattice.vertices), vectors[f"{case}_plus"], case)
        np.testing.assert_array_equal(ids(lattice.neighbours[:, 1], lattice.vertices), vectors[f"{case}_minus"], case)


def torch_lattices(features: np.ndarray, images: int = 1) -> Lattices:
    columns = torch.from_numpy(np.ascontiguousarray(features.T))
    return Lattices.of([columns] * images, features.min(0), features.max(0))


def first_visits(offsets: np.ndarray) -> np.ndarray:
    """The points of all numbers, renumbered in the order in which they occur."""
    _, first, number = np.unique(offsets, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].reshape(offsets.shape)


def test_torch_lattice_is_the_reference_lattice(parity: Any) -> None:
    vectors = parity("densecrf/lattice")
    for case in parity.cases(vectors, "*_features"):
        features, vertices = vectors[f"{case}_features"], int(vectors[f"{case}_vertices"])
        _, rank, _ = densecrf_torch.embed(torch.from_numpy(np.ascontiguousarray(features.T)))
        np.testing.assert_array_equal(rank.T, vectors[f"{case}_rank"], case)
        two = torch_lattices(features, images=2)  # the second image has its own vertices
        assert two.neighbours.shape[2] == 2 * vertices + 1, case
        for points, start in ((slice(0, len(features)), 0), (slice(len(features), None), vertices)):
            offsets = two.offsets[points].numpy()
            assert (offsets.min() >= start) and (offsets.max() < start + vertices)
            np.testing.assert_array_equal(two.weights[points], vectors[f"{case}_bary"], case)
            np.testing.assert_array_equal(first_visits(offsets), first_visits(vectors[f"{case}_offset"]), case)
            # From their numbers to ours; vertices of the padding, which no point uses, are not compared.
            number = np.full(vertices + 1, -1)
            number[vectors[f"{case}_offset"]] = offsets
            used = np.flatnonzero(number >= 0)
            for side, name in enumerate(("plus", "minus")):
                theirs = vectors[f"{case}_{name}"][:, used]
                ours = two.neighbours[:, side, number[used]].numpy()
                np.testing.assert_array_equal(ours == 2 * vertices, theirs == -1, case)
                known = (theirs >= 0) & (number[theirs] >= 0)
                np.testing.assert_array_equal(ours[known], number[theirs[known]], case)


def test_torch_filter(parity: Any) -> None:
    features, vectors = parity("densecrf/lattice"), parity("densecrf/filter")
    for name in vectors:
        case, _, channels = name.rpartition("_values_")
        if case:
            expected = vectors[f"{case}_out_{channels}"]
            result = torch_lattices(features[f"{case}_features"]).filter(torch.from_numpy(vectors[name]).T.contiguous())
            agrees(result.T.numpy(), expected, relative=1e-6)


def test_filter(parity: Any) -> None:
    features, vectors = parity("densecrf/lattice"), parity("densecrf/filter")
    for name in vectors:
        case, _, channels = name.rpartition("_values_")
        if not case:
            continue
        expected = vectors[f"{case}_out_{channels}"]
        result = gaussian_filter(Lattice.of(features[f"{case}_features"]), vectors[name])
        agrees(result, expected, relative=1e-6)


@pytest.mark.parametrize("normalisation", ["before", "after", "symmetric"])
def test_normalised_filter(parity: Any, normalisation: Any) -> None:
    features, vectors = parity("densecrf/lattice"), parity("densecrf/filter")
    for case in parity.cases(vectors, f"*_{normalisation}_3"):
        expected = vectors[f"{case}_{normalisation}_3"]
        kernel = PairwiseKernel(features[f"{case}_features"], normalisation=normalisation)
        agrees(kernel.filter(vectors[f"{case}_values_3"]), expected, relative=1e-6)


def test_unaries(parity: Any) -> None:
    vectors = parity("densecrf/unary")
    prob, odd, labels = (vectors[name] for name in ("prob", "odd", "labels"))
    assert prob.min() > SMALLEST_PROBABILITY
    unsure_is_void = np.where((labels == 0) | (labels == 255), 255, labels.astype(np.int64) - 1)
    computed = {
        "softmax": unary_from_probabilities(prob),
        "softmax_f64": unary_from_probabilities(prob.astype(np.float64)),
        "softmax_scale_07": unary_from_probabilities(mixed_with_uniform(prob, 0.7)),
        "softmax_scale_1": unary_from_probabilities(mixed_with_uniform(prob, 1)),
        "softmax_clip_1e-2": unary_from_probabilities(prob.clip(1e-2)),
        "softmax_clip_none": unary_from_probabilities(prob),
        "odd_softmax": unary_from_probabilities(odd),
        "odd_softmax_scale_05": unary_from_probabilities(mixed_with_uniform(odd, 0.5)),
        "labels_5_07": unary_from_labels(labels, 5, 0.7),
        "labels_4_05_unsure": unary_from_labels(unsure_is_void, 4, 0.5),
        "labels_2_09": unary_from_labels(labels % 2, 2, 0.9),
    }
    for name, result in computed.items():
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
        agrees(result.reshape(len(result), -1), vectors[name], absolute=2e-6)


def mixed_with_uniform(probabilities: np.ndarray, share: float) -> np.ndarray:
    return share * probabilities.astype(np.float64) + (1 - share) / len(probabilities)


def y_first(features: np.ndarray) -> np.ndarray:
    """The features in the order of the reference's helpers for any number of dimensions."""
    return features[:, [1, 0, *range(2, features.shape[1])]]


def test_features(parity: Any) -> None:
    vectors = parity("densecrf/unary")
    image = vectors["image"]
    computed = {
        "nd_gaussian_3_5": gaussian_features(*image.shape[:2], (5, 3)),
        "nd_bilateral_80_50_13": bilateral_features(image, (50, 80), 13),
        "nd_bilateral_grey_10_10_4": bilateral_features(image[..., :1], 10, 4),
    }
    for name, features in computed.items():
        agrees(y_first(features).T, vectors[name], absolute=2e-6)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.cases("densecrf/mean_field", "*_image")
def test_mean_field(parity: Any, case: str) -> None:
    vectors = parity("densecrf/mean_field")
    image, stride = vectors[f"{case}_image"], int(vectors[f"{case}_stride"])
    all_parameters = dict(zip(vectors["parameter_names"].tolist(), vectors["parameters"], strict=True))
    used = {name: values for name, values in all_parameters.items() if f"{case}_{name}_q1" in vectors}
    assert used
    for name, (sxy, weight, *bilateral) in used.items():
        for iterations, tolerance in TOLERANCES.items():
            parameters = CRFParameters(sxy, weight, *bilateral, iterations=iterations)
            marginals = dense_crf(image, unary(vectors, f"{case}_"), parameters)
            expected = vectors[f"{case}_{name}_q{iterations}" if iterations else f"{case}_q0"]
            difference = np.abs(marginals.reshape(len(marginals), -1)[:, ::stride] - expected)
            assert difference.max() <= tolerance, (name, iterations)
        assert difference.mean() <= 1e-5, name
        clear = vectors[f"{case}_{name}_close10"] == 0
        np.testing.assert_array_equal(marginals.argmax(0)[clear], vectors[f"{case}_{name}_argmax10"][clear])


def test_named_parameters(parity: Any) -> None:
    vectors = parity("densecrf/mean_field")
    ours = {**PARAMETERS, "half_scale": HALF_SCALE}
    for name, values in zip(vectors["parameter_names"], vectors["parameters"], strict=True):
        p = ours[name]
        assert list(values) == [
            p.gaussian_sxy,
            p.gaussian_weight,
            p.bilateral_sxy,
            p.bilateral_srgb,
            p.bilateral_weight,
        ]


def option_kernels(image: np.ndarray, normalisation: Any = "symmetric") -> list[PairwiseKernel]:
    height, width = image.shape[:2]
    return [
        PairwiseKernel(gaussian_features(height, width, 3), 3.0, normalisation),
        PairwiseKernel(bilateral_features(image, 80, 13), 10.0, normalisation),
    ]


@pytest.mark.usefixtures("both_forms")
def test_options(parity: Any) -> None:
    vectors = parity("densecrf/options")
    image = vectors["image"]
    costs = unary(vectors)
    shape = costs.shape
    costs = costs.reshape(len(costs), -1)
    gaussian, bilateral = option_kernels(image)
    kernels = {
        **{f"norm_{mode}": option_kernels(image, mode) for mode in ("none", "before", "after", "symmetric")},
        # How a reference kernel would learn its parameters makes no difference to inference.
        **{f"kernel_{kind}": [gaussian, bilateral] for kind in ("const", "diag", "full")},
        "compat_vector": [PairwiseKernel(bilateral.features, vectors["compat_vector"])],
        "compat_matrix": [PairwiseKernel(bilateral.features, vectors["compat_matrix"])],
        "bilateral_only": [bilateral],
        "gaussian_only": [gaussian],
        "no_kernel": [],
        "step": [gaussian, bilateral],
        "nd_helpers": [
            PairwiseKernel(y_first(gaussian.features), 3.0),
            PairwiseKernel(y_first(bilateral.features), 10.0),
        ],
    }
    for name, used in kernels.items():
        agrees(MeanField(costs, used).marginals(5).reshape(shape), vectors[f"{name}_q5"], absolute=1e-4)

    anisotropic = CRFParameters((2, 5), 3, (40, 25), (13, 7, 20), 10, iterations=5)
    agrees(dense_crf(image, unary(vectors), anisotropic), vectors["anisotropic_q5"], absolute=1e-4)
    without_unary = MeanField(np.zeros_like(costs), [gaussian, bilateral]).marginals(1)
    agrees(without_unary.reshape(shape), vectors["no_unary_q1"], absolute=1e-4)
    without_unary = dense_crf(image, np.zeros(shape), CRFParameters(iterations=1))
    agrees(without_unary, vectors["no_unary_q1"], absolute=1e-4)


def test_divergence_is_that_of_the_reference(parity: Any) -> None:
    vectors = parity("densecrf/options")
    costs = unary(vectors)
    field = MeanField(costs.reshape(len(costs), -1), option_kernels(vectors["image"]))
    marginals = field.start()
    divergences = [field.divergence(marginals)]
    for _ in vectors["kl"][1:]:
        marginals = field.step(marginals)
        divergences.append(field.divergence(marginals))
    np.testing.assert_allclose(divergences, vectors["kl"], rtol=1e-5)


def mostly_equal(ours: np.ndarray, theirs: np.ndarray, share: float = 0.999) -> None:
    assert (ours == theirs).mean() >= share


@pytest.mark.usefixtures("both_forms")
def test_uses_in_the_methods(parity: Any) -> None:
    vectors = parity("densecrf/uses")
    image, cam = vectors["image"], vectors["cam"]
    both = [unary_from_probabilities(np.concatenate([vectors[f"background_{alpha}"][None], cam])) for alpha in (4, 24)]
    for alpha, marginals in zip((4, 24), dense_crf(image, both), strict=True):
        agrees(marginals, vectors[f"alpha_{alpha}_q"], absolute=TOLERANCES[10])

    hard = [unary_from_labels(vectors[name], len(cam) + 1, 0.7) for name in ("hard_30", "hard_05")]
    for name, marginals in zip(("hard_30", "hard_05"), dense_crf(image, hard, PARAMETERS["irnet"]), strict=True):
        mostly_equal(marginals.argmax(0), vectors[f"{name}_argmax"])

    seed = vectors["seed"]
    scores = np.where(np.arange(21)[:, None, None] == seed, 0.5, 0.5 / 21)
    marginals = dense_crf(image, unary_from_probabilities(scores / scores.sum(0)), PARAMETERS["icd"])
    present = np.union1d(0, seed[seed != 255])
    absent = np.setdiff1d(np.arange(21), present)
    agrees(marginals[present], vectors["seed_q_present"], absolute=TOLERANCES[10])
    agrees(marginals[absent[0]], vectors["seed_q_absent"], absolute=TOLERANCES[10])
    marginals = marginals / marginals.sum(0)
    mostly_equal(np.where(marginals.max(0) < 0.1, 255, marginals.argmax(0)), vectors["seed_argmax"])

    enlarged = vectors["prob_small"].repeat(4, axis=1).repeat(4, axis=2)[:, : image.shape[0], : image.shape[1]]
    for use, parameters in (
        ("deeplab", PARAMETERS["deeplab"]),
        ("seam_retrain", PARAMETERS["seam_retrain"]),
        ("affinitynet", PARAMETERS["affinitynet_walk"]),
    ):
        marginals = dense_crf(image, unary_from_probabilities(enlarged), parameters)
        expected = vectors[f"prob_{use}_q{parameters.iterations}"]
        agrees(marginals[:, ::2, ::2], expected, absolute=TOLERANCES[parameters.iterations])
        mostly_equal(marginals.argmax(0), vectors[f"prob_{use}_argmax{parameters.iterations}"])


@pytest.mark.usefixtures("both_forms")
def test_lattice_and_exact_sums(parity: Any) -> None:
    vectors = parity("densecrf/brute_force")
    image, values = vectors["image"], vectors["values"]
    height, width = image.shape[:2]
    parameters = {**PARAMETERS, "half_scale": HALF_SCALE}
    for name in parity.cases(vectors, "*_exact_q1"):
        p = parameters[name]
        features = {
            "gaussian": gaussian_features(height, width, p.gaussian_sxy),
            "bilateral": bilateral_features(image, p.bilateral_sxy, p.bilateral_srgb),
        }
        exact = {}
        for kernel, points in features.items():
            exact[kernel] = exact_kernel(points)
            expected = vectors[f"{name}_{kernel}_lattice"]
            agrees(PairwiseKernel(points).filter(values), expected, relative=1e-6)
            agrees(values @ exact[kernel], vectors[f"{name}_{kernel}_exact"], absolute=1e-6)
        costs = unary(vectors)
        start = -costs.reshape(len(costs), -1)
        marginals = softmax(start)
        for iteration in range(1, max(TOLERANCES) + 1):
            messages = p.gaussian_weight * exact["gaussian"] + p.bilateral_weight * exact["bilateral"]
            marginals = softmax(start + marginals @ messages)
            if iteration not in TOLERANCES:
                continue
            agrees(marginals.reshape(costs.shape), vectors[f"{name}_exact_q{iteration}"], absolute=1e-4)
            lattice = dense_crf(image, costs, CRFParameters(**{**vars(p), "iterations": iteration}))
            agrees(lattice, vectors[f"{name}_lattice_q{iteration}"], absolute=TOLERANCES[iteration])


def exact_kernel(points: np.ndarray) -> np.ndarray:
    """The symmetrically normalised Gaussian sums as a matrix (N, N)."""
    squared = ((points[:, None].astype(np.float64) - points[None]) ** 2).sum(-1)
    kernel = np.exp(-squared / 2)
    scale = 1 / np.sqrt(kernel.sum(1) + 1e-20)
    return scale[:, None] * kernel * scale


@pytest.mark.usefixtures("both_forms")
def test_deeplab_refinement(parity: Any) -> None:
    vectors = parity("deeplab/crf")
    costs = unary_from_probabilities(vectors["prob"])
    agrees(dense_crf(vectors["rgb"], costs, PARAMETERS["deeplab"]), vectors["q"], absolute=1e-3)
    agrees(dense_crf(vectors["rgb"], costs, PARAMETERS["seam_retrain"]), vectors["q_seam_retrain"], absolute=1e-3)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.cases("irnet/ir_label", "image_*")
def test_irnet_labels(parity: Any, case: str) -> None:
    vectors = parity("irnet/ir_label")
    n = len(vectors[f"keys_{case}"]) + 1
    hard = [unary_from_labels(vectors[f"{which}_before_crf_{case}"], n, 0.7) for which in ("fg", "bg")]
    refined = dense_crf(vectors[f"image_{case}"], hard, PARAMETERS["irnet"])
    for which, marginals in zip(("fg", "bg"), refined, strict=True):
        mostly_equal(marginals.argmax(0), vectors[f"{which}_after_crf_{case}"], 0.995)
