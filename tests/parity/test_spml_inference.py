"""SPML's pseudo-labels and inference against their reference (spml.md section 10).

Where the library mends what the reference does, the tests do as the reference around the library's functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import agrees
from weakseg.data.opencv import scale_nearest
from weakseg.labels import VOID
from weakseg.methods.spml.clustering import numbered, prototypes, resize_by_corner
from weakseg.methods.spml.inference import (
    Network,
    Size,
    Windows,
    longer_side,
    padded,
    resized,
    scaled_views,
    unit_embeddings,
    window_ends,
    windowed,
)
from weakseg.methods.spml.network import softmax_classifier
from weakseg.methods.spml.pseudo_labels import (
    activation_seed,
    affinity,
    cells_of,
    image_affinity,
    present_seed,
    propagated_scores,
    relabelled,
    shown,
    transition,
    view_features,
    walk,
)
from weakseg.methods.spml.retrieval import (
    LabelledSegments,
    image_clusters,
    label_shares,
    labelled_segments,
    majority,
    nearest,
    retrieved_shares,
)
from weakseg.ops.activation import normalise_image
from weakseg.ops.densecrf import dense_crf, unary_from_probabilities
from weakseg.ops.instance_weighted import InstanceWeighted

Vectors = dict[str, np.ndarray]
CLASSES, PARTS = 21, 15
CROP = (96, 96)
SCALES = (0.5, 0.75, 1, 1.25, 1.5)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def same_labels(ours: np.ndarray, theirs: np.ndarray, share: float = 0.98) -> None:
    assert ours.shape == theirs.shape
    assert (ours == theirs).mean() >= share


def every_sixth(maps: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(maps)[:, ::6, ::6]


def refined(image: np.ndarray, maps: Tensor | np.ndarray) -> np.ndarray:
    return dense_crf(image, unary_from_probabilities(np.asarray(maps)), "spml").argmax(0)


def normalised_image(image: np.ndarray) -> Tensor:
    return torch.from_numpy(normalise_image(image))


def toy_embeddings(parity: Any, dimensions: int) -> Network:
    """The vectors' toy network, up to the doubled resolution."""
    fill = parity.fill.fill
    network = nn.Sequential(nn.Conv2d(3, 16, 9, 8, 4), nn.Conv2d(16, dimensions, 1))
    state = {
        "0.weight": fill("toy.backbone.weight", (16, 3, 9, 9), gain=0.7),
        "0.bias": 10 * fill("toy.backbone.bias", (16,)),
        "1.weight": fill("toy.head.weight", (dimensions, 16, 1, 1), gain=1.3),
        "1.bias": 10 * fill("toy.head.bias", (dimensions,)),
    }
    network.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    return lambda images: F.interpolate(network(images), scale_factor=2, mode="bilinear", align_corners=False)


def toy_logits(parity: Any, embeddings: Network, dimensions: int) -> Network:
    """The toy classifier on the embeddings at the images' size."""
    classifier = softmax_classifier(dimensions, CLASSES, 0.0).eval()
    shapes = {f"semantic_classifier.{name}": tuple(t.shape) for name, t in classifier.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, gain=2.0)
    prefix = len("semantic_classifier.")
    classifier.load_state_dict({name[prefix:]: torch.as_tensor(values) for name, values in state.items()})
    embed = unit_embeddings(embeddings)
    return lambda images: classifier(embed(images))


# Retrieval ------------------------------------------------------------------------------------------------------------


def test_nearest_segments(parity: Any) -> None:
    vectors = parity("spml/nearest")
    cluster = numbered(torch.from_numpy(vectors["cluster_index"]).long())[0]
    memory, labels = torch.from_numpy(vectors["memory"]), torch.from_numpy(vectors["memory_label"]).long()
    queries = prototypes(torch.from_numpy(vectors["embedding"]), cluster, int(cluster.max()) + 1)
    agrees(queries, vectors["prototype"], relative=1e-5)
    theirs = vectors["topk_of_cluster"]
    found = labels[nearest(queries, memory, theirs.shape[1])]
    np.testing.assert_array_equal(found, theirs)
    np.testing.assert_array_equal(found[:, : vectors["top5_labels"].shape[1]], vectors["top5_labels"])
    prediction = label_shares(found, int(labels.max()) + 1).argmax(1)[cluster]
    np.testing.assert_array_equal(prediction, vectors["prediction"])
    top5 = found[:, : vectors["top5_labels"].shape[1]].numpy() == vectors["query_label"][:, None]
    assert top5.mean() == pytest.approx(float(vectors["top5_accuracy"]), abs=1e-6)


def test_majority_labels(parity: Any) -> None:
    vectors = parity("spml/nearest")
    labels = torch.from_numpy(vectors["majority_in"])
    rows = torch.arange(len(labels)).repeat_interleave(labels.shape[1])
    np.testing.assert_array_equal(majority(labels.flatten(), rows, len(labels)), vectors["majority_out"])


# The walk -------------------------------------------------------------------------------------------------------------


def walk_inputs(parity: Any, case: str, scales: Iterable[float]) -> tuple[Vectors, list[Tensor], list[Tensor], Size]:
    """The vectors of a case, and per view the embeddings and the classifier's scores of its image, mirrored back."""
    vectors = parity("spml/random_walk")
    view_of = normalised_image(vectors[f"{case}_image"])
    embeddings = toy_embeddings(parity, 64)
    logits = toy_logits(parity, embeddings, 64)
    views = list(scaled_views(view_of, list(scales), mirror=True))
    features, scores = (
        [view_features(network, view, CROP, mirrored=mirrored) for view, mirrored in views]
        for network in (embeddings, logits)
    )
    return vectors, features, scores, (int(view_of.shape[1]), int(view_of.shape[2]))


@pytest.mark.parametrize("case", ["even", "odd"])
def test_walk_from_activation_maps(parity: Any, case: str) -> None:
    vectors, features, _, size = walk_inputs(parity, case, [1])
    name, cells = f"{case}_pseudo_camrw_crf", cells_of(size)
    agrees(affinity(resized(features[0][None], cells)[0]), vectors[f"{name}_affinity_flip"], relative=1e-4)
    affinities = image_affinity(features, cells)
    agrees(affinities, vectors[f"{name}_affinity"], relative=1e-4)
    step = transition(affinities)
    agrees(step, vectors[f"{name}_transition"], relative=1e-4)
    maps, labels = torch.from_numpy(vectors[f"{case}_cam"]), (vectors[f"{case}_cam_keys"] + 1).tolist()
    seed = activation_seed(maps, labels, CLASSES, cells)
    by_size = name if case == "even" else f"{case}_sized"
    agrees(seed, vectors[f"{by_size}_seed"], relative=1e-4)
    agrees(walk(seed, step), vectors[f"{by_size}_walked"], relative=1e-3)
    # The label maps of the reference come from a seed that was resized by a factor.
    at_pixels = activation_seed(maps, labels, CLASSES, size)
    by_factor = F.interpolate(
        at_pixels[None], scale_factor=1 / 8, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )[0]
    agrees(by_factor, vectors[f"{name}_seed"], relative=1e-4)
    walked = resized(walk(by_factor, step)[None], size)[0]
    agrees(every_sixth(walked), vectors[f"{name}_crf_in_sample"], relative=1e-3)
    same_labels(np.asarray(walked.argmax(0)), vectors[f"{name}_crf_in_argmax"])
    same_labels(refined(vectors[f"{case}_image"], walked), vectors[f"{name}_label"])


@pytest.mark.parametrize("case", ["even", "odd"])
@pytest.mark.parametrize(
    ("step", "scales"), [("pseudo_softmaxrw_crf", (1,)), ("pseudo_softmax", (0.75, 1))], ids=["D", "C"]
)
def test_walk_from_scores(parity: Any, case: str, step: str, scales: tuple[float, ...]) -> None:
    vectors, features, scores, size = walk_inputs(parity, case, scales)
    cells, name, refine = cells_of(size), f"{case}_{step}", step.endswith("crf")
    at_cells = torch.stack([resized(view[None], cells)[0] for view in scores])
    probabilities = at_cells.softmax(1).mean(0) if refine else at_cells.mean(0).softmax(0)
    seed = present_seed(probabilities, shown(vectors[f"{case}_semantic"], CLASSES))
    agrees(seed, vectors[f"{name}_seed"], relative=1e-4)
    # One step in the arrays of C, where the specification says 64.
    walked = walk(seed, transition(image_affinity(features, cells)), 64 if refine else 1)
    agrees(walked, vectors[f"{name}_walked"], relative=1e-3)
    at_pixels = resized(walked[None], size)[0]
    if refine:
        agrees(every_sixth(at_pixels), vectors[f"{name}_crf_in_sample"], relative=1e-3)
        same_labels(np.asarray(at_pixels.argmax(0)), vectors[f"{name}_crf_in_argmax"])
    labels = refined(vectors[f"{case}_image"], at_pixels) if refine else np.asarray(at_pixels.argmax(0))
    same_labels(labels, vectors[f"{name}_label"])


def test_walk_from_points(parity: Any) -> None:
    vectors = parity("spml/random_walk")
    image, labels = normalised_image(vectors["dp_image"]), vectors["dp_semantic"]
    whole = padded(image, CROP)
    at_pixels = resized(toy_embeddings(parity, 32)(whole[None]), size_of(whole))
    size = (image.shape[1] // 2, image.shape[2] // 2)
    halved = cut(resized(at_pixels, (whole.shape[1] // 2, whole.shape[2] // 2))[0], size)
    partial = torch.from_numpy(np.where(labels == VOID, PARTS, labels))
    small, regions = (resize_by_corner(m[None], size)[0] for m in (partial, torch.from_numpy(vectors["dp_instance"])))
    cells = cells_of(size_of(image))
    affinities = affinity(resized(halved[None], cells)[0])
    theirs = vectors["dp_affinity_stats"]
    agrees(parity.stats(affinities, len(theirs) - 3), theirs, relative=1e-4)
    scores = resized(propagated_scores(halved, small, regions, PARTS, (5, 5))[None], cells)[0]
    seed = present_seed(scores, shown(partial, PARTS))
    agrees(seed, vectors["dp_seed"], relative=1e-4)
    walked = walk(seed, transition(affinities))
    agrees(walked, vectors["dp_walked"], relative=1e-3)
    walked_at_pixels = resized(walked[None], size_of(image))[0]
    same_labels(np.asarray(walked_at_pixels.argmax(0)), vectors["dp_crf_in_argmax"])
    found = np.where(labels == VOID, VOID, refined(vectors["dp_image"], walked_at_pixels))
    same_labels(found, vectors["dp_label"])


def test_crf(parity: Any) -> None:
    vectors = parity("spml/random_walk")
    image, probabilities = vectors["crf_image"], vectors["crf_prob"]
    agrees(dense_crf(image, unary_from_probabilities(probabilities), "spml"), vectors["crf_out"], relative=1e-3)
    unnormalised = 0.6 * probabilities / probabilities.max((1, 2), keepdims=True)
    ours = dense_crf(image, unary_from_probabilities(unnormalised), "spml")
    agrees(ours, vectors["crf_out_unnormalised"], relative=1e-3)


# Windows and scales ---------------------------------------------------------------------------------------------------


def sliding(parity: Any) -> tuple[Vectors, Windows, Network]:
    vectors = parity("spml/sliding")
    height, width = vectors["crop"].tolist()
    rows, columns = vectors["stride"].tolist()
    return vectors, Windows((height, width), (rows, columns)), toy_embeddings(parity, 64)


def images(vectors: Vectors, kind: str) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    for number in range(sum(name.startswith(kind) and name.endswith("_image") for name in vectors)):
        image = vectors[f"{kind}{number}_image"]
        yield number, image, normalised_image(image)


def size_of(image: Tensor) -> Size:
    return int(image.shape[1]), int(image.shape[2])


def cut(maps: Tensor, size: Size) -> Tensor:
    return maps[:, : size[0], : size[1]]


def window_list(sizes: Iterable[Size], windows: Windows) -> list[int]:
    found: list[int] = []
    for size in sizes:
        for side, crop, stride in zip(size, windows.crop, windows.stride, strict=True):
            ends = window_ends(max(side, crop), crop, stride)
            found += [len(ends), *ends]
    return found


def test_windows(parity: Any) -> None:
    vectors, windows, _ = sliding(parity)
    _, _, image = next(images(vectors, "test"))
    single = longer_side(size_of(image), int(vectors["image_size"]))
    assert window_list([single], windows) == vectors["inference_softmax_windows0"].tolist()
    views = [size_of(view) for view, _ in scaled_views(image, SCALES, mirror=True)]
    assert window_list(views, windows) == vectors["inference_softmax_msc_windows0"].tolist()


def test_softmax_at_one_scale(parity: Any) -> None:
    vectors, windows, embeddings = sliding(parity)
    logits = toy_logits(parity, embeddings, 64)
    for number, picture, image in images(vectors, "test"):
        size = longer_side(size_of(image), int(vectors["image_size"]))
        view = resized(image[None], size)[0]
        mean = cut(windowed(logits, view, windows), size)
        original = size_of(image)
        labels = scale_nearest(np.asarray(mean.argmax(0)), original)
        same_labels(labels, vectors[f"inference_softmax_label{number}"])
        # The reference adds the scores of all windows that see a pixel.
        whole = size_of(padded(view, windows.crop))
        seen = torch.zeros(whole)
        for y in window_ends(whole[0], windows.crop[0], windows.stride[0]):
            for x in window_ends(whole[1], windows.crop[1], windows.stride[1]):
                seen[y - windows.crop[0] : y, x - windows.crop[1] : x] += 1
        summed = (mean * seen[: size[0], : size[1]]).softmax(0)
        agrees(every_sixth(summed), vectors[f"inference_softmax_crf_prob{number}_sample"], relative=1e-4)
        same_labels(np.asarray(summed.argmax(0)), vectors[f"inference_softmax_crf_prob{number}_argmax"])
        guide = (resized(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), size)[0]).clamp(0, 255)
        guide_image = np.ascontiguousarray(guide.permute(1, 2, 0).numpy().astype(np.uint8))
        labels = scale_nearest(refined(guide_image, summed), original)
        same_labels(labels, vectors[f"inference_softmax_crf_label{number}"])


def test_softmax_at_several_scales(parity: Any) -> None:
    vectors, windows, embeddings = sliding(parity)
    logits = toy_logits(parity, embeddings, 64)
    for number, picture, image in images(vectors, "test"):
        found = over_views(
            image,
            SCALES,
            lambda view: cut(windowed(logits, view, windows), size_of(view)),
            lambda maps: maps.softmax(0),
        )
        agrees(every_sixth(found), vectors[f"inference_softmax_crf_msc_prob{number}_sample"], relative=1e-4)
        same_labels(np.asarray(found.argmax(0)), vectors[f"inference_softmax_crf_msc_prob{number}_argmax"])
        same_labels(np.asarray(found.argmax(0)), vectors[f"inference_softmax_msc_label{number}"])
        same_labels(refined(picture, found), vectors[f"inference_softmax_crf_msc_label{number}"])


def over_views(
    image: Tensor, scales: Iterable[float], of_view: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor]
) -> Tensor:
    """The mean over scales and mirror images, at the image's size."""
    maps = []
    for view, mirrored in scaled_views(image, list(scales), mirror=True):
        at_size = then(resized(of_view(view)[None], size_of(image))[0])
        maps.append(at_size.flip(2) if mirrored else at_size)
    return torch.stack(maps).mean(0)


# Retrieval ------------------------------------------------------------------------------------------------------------


def memory_of(vectors: Vectors, windows: Windows, embeddings: Network, scales: tuple[float, ...]) -> LabelledSegments:
    """The memory of the training images: at the test size, or at each of `scales` of their own."""
    parts, grid = [], tuple(vectors["nn_clusters"].tolist())
    for number, _, image in images(vectors, "train"):
        labels = vectors[f"train{number}_semantic"]
        single = resized(image[None], longer_side(size_of(image), int(vectors["image_size"])))[0]
        for view in [view for view, _ in scaled_views(image, scales, mirror=False)] or [single]:
            found = windowed(unit_embeddings(embeddings), view, windows)
            size = size_of(view)
            clusters = image_clusters(found, grid, inside=size)
            parts.append(labelled_segments(cut(found, size), clusters, torch.from_numpy(scale_nearest(labels, size))))
    return LabelledSegments(*(torch.cat(values) for values in zip(*parts, strict=True)))


def check_memory(memory: LabelledSegments, vectors: Vectors, name: str) -> None:
    assert list(memory.prototypes.shape) == vectors[f"{name}_memory_shape"].tolist()
    np.testing.assert_array_equal(np.sort(memory.labels), np.sort(vectors[f"{name}_memory_labels"]))


def test_retrieval_at_one_scale(parity: Any) -> None:
    vectors, windows, embeddings = sliding(parity)
    memory = memory_of(vectors, windows, embeddings, ())
    check_memory(memory, vectors, "prototype")
    memory, grid = memory.of_classes(CLASSES), tuple(vectors["nn_clusters"].tolist())
    for number, _, image in images(vectors, "test"):
        size = longer_side(size_of(image), int(vectors["image_size"]))
        found = windowed(unit_embeddings(embeddings), resized(image[None], size)[0], windows)
        clusters = image_clusters(found, grid, inside=size)
        shares = retrieved_shares(cut(found, size), clusters, memory, CLASSES)
        difference = every_sixth(shares) - vectors[f"inference_crf_prob{number}_sample"]
        assert np.abs(difference).mean() <= 0.005
        same_labels(np.asarray(shares.argmax(0)), vectors[f"inference_crf_prob{number}_argmax"])
        labels = scale_nearest(np.asarray(shares.argmax(0)), size_of(image))
        same_labels(labels, vectors[f"inference_label{number}"])


def test_retrieval_at_several_scales(parity: Any) -> None:
    vectors, windows, embeddings = sliding(parity)
    memory = memory_of(vectors, windows, embeddings, (0.5, 1, 1.5))
    check_memory(memory, vectors, "prototype_msc")
    memory, grid = memory.of_classes(CLASSES), tuple(vectors["nn_clusters"].tolist())

    def shares(view: Tensor) -> Tensor:
        found = cut(windowed(unit_embeddings(embeddings), view, windows), size_of(view))
        return retrieved_shares(found, image_clusters(found, grid), memory, CLASSES)

    for number, picture, image in images(vectors, "test"):
        found = over_views(image, SCALES, shares, lambda maps: maps)
        assert np.abs(every_sixth(found) - vectors[f"inference_crf_msc_prob{number}_sample"]).mean() <= 0.005
        same_labels(np.asarray(found.argmax(0)), vectors[f"inference_msc_label{number}"])
        same_labels(refined(picture, found), vectors[f"inference_crf_msc_label{number}"])
    _, picture, image = next(images(vectors, "train"))
    found = relabelled(
        over_views(image, (0.5, 1, 1.5, 2), shares, lambda maps: maps), shown(vectors["train0_semantic"], 21)
    )
    assert np.abs(every_sixth(found) - vectors["pseudo_inference_crf_msc_prob0_sample"]).mean() <= 0.005
    same_labels(np.asarray(found.argmax(0)), vectors["pseudo_inference_crf_msc_prob0_argmax"])
    same_labels(refined(picture, found), vectors["pseudo_inference_crf_msc_label0"])


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_instance_weighted_scores(parity: Any) -> None:
    vectors = parity("spml/benchmark")
    scores = InstanceWeighted(len(vectors["instance_per_class"]))
    for case in parity.cases(vectors, "pred*"):
        scores.update(vectors[f"gt{case}"], vectors[f"pred{case}"], vectors[f"inst{case}"], case)
    np.testing.assert_allclose(100 * scores.iou(), vectors["instance_per_class"], atol=5e-4)
    assert 100 * scores.mean_iou == pytest.approx(float(vectors["instance_mean"]), abs=5e-4)
