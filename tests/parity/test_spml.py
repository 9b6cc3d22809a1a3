"""SPML against its reference (spml.md section 10): clustering, prototypes, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import agrees
from weakseg.labels import VOID
from weakseg.methods.spml import SPML, LossSettings
from weakseg.methods.spml.clustering import (
    Segments,
    grid_labels,
    normalised,
    numbered,
    places,
    prototypes,
    segments,
    spherical_kmeans,
)
from weakseg.methods.spml.losses import contrastive_loss, propagated_labels, shared
from weakseg.methods.spml.memory import Prototypes
from weakseg.models.registry import BackboneSettings

SMALL = BackboneSettings(name="small", output_stride=8, weights=None)
Vectors = dict[str, np.ndarray]


def equal(ours: Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_array_equal(ours.numpy(), theirs)


def tensor(vectors: Vectors, name: str) -> Tensor:
    values = torch.from_numpy(vectors[name])
    return values if values.is_floating_point() else values.long()


# Clustering -----------------------------------------------------------------------------------------------------------


@pytest.mark.cases("spml/clustering", "init_*_args")
def test_start_of_clusters(parity: Any, case: str) -> None:
    vectors = parity("spml/clustering")
    rows, columns, height, width = vectors[f"init_{case}_args"].tolist()
    equal(grid_labels((rows, columns), (height, width)), vectors[f"init_{case}_labels"])
    agrees(places((height, width)), vectors[f"init_{case}_location"], relative=1e-6)


def test_normalisation(parity: Any) -> None:
    vectors = parity("spml/clustering")
    agrees(normalised(tensor(vectors, "normalize_in")), vectors["normalize_out"], relative=1e-6)


def test_kmeans(parity: Any) -> None:
    vectors = parity("spml/clustering")
    by_iteration = tensor(vectors, "kmeans_labels_by_iteration")
    for iterations, expected in enumerate(by_iteration):
        clusters = int(vectors["kmeans_max_label"]) + 1
        found = spherical_kmeans(tensor(vectors, "kmeans_in"), by_iteration[0], clusters, iterations)
        equal(found, expected.numpy())


def cut(vectors: Vectors, local: Tensor, **labels: Tensor) -> Segments:
    return segments(tensor(vectors, "segment_embedding"), local, **labels)


@pytest.mark.parametrize(("name", "grid"), [("segment", 2), ("segment5", 5)])
def test_segments(parity: Any, name: str, grid: int) -> None:
    vectors = parity("spml/clustering")
    semantic, size = tensor(vectors, "segment_semantic"), vectors["segment_semantic"].shape[1:]
    local = places(size).expand(len(semantic), -1, -1, -1) if name == "segment" else tensor(vectors, "segment_local5")
    # The reference gets one number, and drops that of void pixels.
    labels = semantic.masked_fill(tensor(vectors, "segment_panoptic") == int(vectors["segment_ignore_index"]), VOID)
    found = cut(vectors, local, labels=labels, regions=tensor(vectors, "segment_instance"), grid=(4, 4))
    equal(numbered(found.image[found.segment])[0], vectors[f"{name}_out_batch"])
    expected = vectors[f"{name}_out_cluster"]
    equal(found.segment, expected)
    if name == "segment":
        agrees(found.pixels, vectors["segment_out_embedding"], relative=1e-6)
        agrees(found.located, vectors["segment_out_embedding_with_loc"], relative=1e-6)
    else:
        agrees(parity.stats(found.located, 16), vectors["segment5_out_embedding_with_loc_stats"], relative=1e-6)


def test_segments_without_labels(parity: Any) -> None:
    vectors = parity("spml/clustering")
    nothing = torch.zeros(vectors["segment_semantic"].shape, dtype=torch.int64)
    local = places(nothing.shape[1:]).expand(len(nothing), -1, -1, -1)
    found = cut(vectors, local, labels=nothing, regions=nothing, grid=(3, 5), iterations=4)
    equal(found.segment, vectors["segment_nolabel_out_cluster"])
    equal(found.image[found.segment], vectors["segment_nolabel_out_batch"])


# Prototypes -----------------------------------------------------------------------------------------------------------


def test_prototypes(parity: Any) -> None:
    vectors = parity("spml/prototypes")
    values = tensor(vectors, "proto_in").requires_grad_()
    found = prototypes(values, tensor(vectors, "proto_labels"), len(vectors["proto_out"]))
    agrees(found, vectors["proto_out"], relative=1e-5)
    (found * tensor(vectors, "proto_upstream")).sum().backward()
    assert values.grad is not None
    agrees(values.grad, vectors["proto_grad"], relative=1e-5)


def test_numbers_of_pairs(parity: Any) -> None:
    vectors = parity("spml/prototypes")
    ids, pairs = numbered(tensor(vectors, "prepare_instance"), tensor(vectors, "prepare_semantic"))
    equal(ids, vectors["prepare_out_index"])
    equal(pairs[:, 1], vectors["prepare_out_labels"])


def test_prototypes_of_two_devices(parity: Any) -> None:
    vectors = parity("spml/prototypes")
    parts = []
    for device in ("gather_in0", "gather_in1"):
        embedding = tensor(vectors, f"{device}_embedding")
        local = places(embedding.shape[-2:]).expand(len(embedding), -1, -1, -1)
        labels, regions = tensor(vectors, f"{device}_semantic"), tensor(vectors, f"{device}_instance")
        parts.append(segments(embedding, local, labels, regions, (3, 3), 5))
    first, second = parts
    equal(first.segment, vectors["gather_out0_cluster"])
    equal(second.segment + len(first.image), vectors["gather_out1_cluster"])
    for ours, theirs in (("label", "semantic"), ("region", "instance")):
        equal(torch.cat([getattr(part, ours) for part in parts]), vectors[f"gather_out_{theirs}"])
    equal(torch.cat([first.image, second.image + len(embedding)]), vectors["gather_out_batch"])
    agrees(torch.cat([part.prototypes() for part in parts]), vectors["gather_out_prototype"], relative=1e-5)
    agrees(
        torch.cat([part.located_prototypes() for part in parts]),
        vectors["gather_out_prototype_with_loc"],
        relative=1e-5,
    )


@pytest.mark.cases("spml/prototypes", "affinity_tags_*")
def test_propagated_labels(parity: Any, case: str) -> None:
    vectors = parity("spml/prototypes")
    neighbours, threshold = (float(word.lstrip("kth")) for word in case.split("_"))
    inputs = (tensor(vectors, f"affinity_{name}") for name in ("prototype", "labels", "batch"))
    expected = vectors[f"affinity_tags_{case}"]
    equal(propagated_labels(*inputs, expected.shape[1], threshold, int(neighbours)), expected > 0)


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.cases("spml/losses", "*_mean")
def test_a_loss(parity: Any, case: str) -> None:
    vectors = parity("spml/losses")
    relation, mode, concentration = case.split("_")
    own, group = tensor(vectors, "own"), torch.arange(len(vectors["own"]))
    if relation == "single":
        same = tensor(vectors, "label")[:, None] == tensor(vectors, "prototype_label")
    else:
        same = shared(tensor(vectors, "tags"), tensor(vectors, "prototype_tags"))
    pixels, prototype = tensor(vectors, "embedding").requires_grad_(), tensor(vectors, "prototype").requires_grad_()

    def loss(rows: slice) -> Tensor:
        own_only = mode == "segsort"
        return contrastive_loss(
            pixels[rows], prototype, own[rows], same, group[rows], float(concentration), own_only=own_only
        )

    total = loss(slice(None))
    assert total.item() == pytest.approx(vectors[f"{case}_sum"], rel=1e-5)
    (total / len(pixels)).backward()
    if f"{case}_none" in vectors:
        agrees(torch.stack([loss(slice(i, i + 1)) for i in range(len(pixels))]), vectors[f"{case}_none"], relative=1e-5)
        assert pixels.grad is not None and prototype.grad is not None
        agrees(pixels.grad, vectors[f"{case}_grad_embedding"], relative=1e-4)
        agrees(prototype.grad, vectors[f"{case}_grad_prototype"], relative=1e-4)


KINDS: dict[str, dict[str, Any]] = {
    "segsort": {},
    "softmax": {},
    "densepose": {
        "annotation": LossSettings(weight=1.0, concentration=6),
        "cooccurrence": LossSettings(weight=0, concentration=8),
        "feature_affinity": LossSettings(weight=0.5, concentration=12),
        "image_similarity_of": "embedding",
        "embedding_share": 0.1,
    },
}


@pytest.mark.parametrize("memory", ["nomem", "mem"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_losses_of_a_step(parity: Any, kind: str, memory: str) -> None:
    vectors = parity("spml/model_losses")
    of = {name.removeprefix(f"{kind}_"): values for name, values in vectors.items() if name.startswith(f"{kind}_")}
    outputs = of["tags"].shape[1]
    settings = SPML.Settings(backbone=SMALL, dimensions=8, grid=(4, 4), dropout=0, **KINDS[kind])
    network = SPML(settings, outputs - 1)
    state = {f"semantic_classifier.{name}": tuple(t.shape) for name, t in network.classifier.state_dict().items()}
    filled = parity.fill.fill_state_dict(state)
    network.classifier.load_state_dict(
        {name.removeprefix("semantic_classifier."): torch.from_numpy(values) for name, values in filled.items()}
    )
    tags = tensor(of, "tags")[:, 1:] > 0
    semantic, region = tensor(of, "semantic"), tensor(of, "instance")
    embedding = tensor(of, "embedding").requires_grad_()
    found = network.segments(embedding, tensor(of, "local"), semantic, region)
    if memory == "mem":
        network.memory.entries = [remembered(network, of, f"memory{age}") for age in (0, 1)]
    equal(found.segment, of["cluster_index"])
    equal(found.label, of["prototype_label"])
    equal(found.image, of["prototype_batch"])
    agrees(found.prototypes(), of["prototype"], relative=1e-5)
    counts = {
        "annotation": (found.label[found.segment] < outputs).sum(),
        "image_similarity": torch.tensor(len(embedding)),
    }
    sums = network.contrast(found, tags)
    losses = {name: value / counts.get(name, torch.tensor(len(found.segment))) for name, value in sums.items()}
    if kind != "segsort":
        classes = torch.where(semantic < outputs, semantic, VOID)
        scores = torch.nn.functional.interpolate(
            network.classified(embedding.detach()), semantic.shape[1:], mode="bilinear", align_corners=False
        )
        entropy = torch.nn.functional.cross_entropy(scores, classes, ignore_index=VOID)
        losses["annotation"] = losses["annotation"] + settings.annotation.weight * entropy
    names = {"annotation": "sem_ann", "cooccurrence": "sem_occ", "feature_affinity": "sem_occ"}
    for name, value in losses.items():
        expected = of[f"{memory}_{names.get(name, 'img_sim')}{'_loss'}"]
        assert value.item() == pytest.approx(expected, rel=1e-5), name
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(of[f"{memory}_total"], rel=1e-5)
    total.backward()
    assert embedding.grad is not None
    agrees(embedding.grad, of[f"{memory}_grad_embedding"], relative=2e-4)
    for name in [name for name in of if name.startswith(f"{memory}_grad_semantic_classifier.")]:
        gradient = network.classifier.get_parameter(name.partition("semantic_classifier.")[2]).grad
        assert gradient is not None
        agrees(parity.stats(gradient, 16), of[name], relative=2e-4)


def remembered(network: SPML, of: Vectors, entry: str) -> Prototypes:
    vectors, labels = tensor(of, f"{entry}_prototype"), tensor(of, f"{entry}_label")
    tags = tensor(of, f"{entry}_tags")[:, 1:] > 0
    sets = tags.new_zeros(len(labels), 0)
    if network.settings.feature_affinity.weight:
        sets = network.label_sets(tensor(of, f"{entry}_prototype_with_loc"), labels, tensor(of, f"{entry}_batch"))
    return Prototypes(vectors, labels, tags, sets)
