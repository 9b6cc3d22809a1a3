"""SEAM against its reference (seam.md section 9)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference import agrees, as_batch
from weakseg.methods.seam import (
    SEAM,
    Present,
    best_only,
    classification_loss,
    compared_maps,
    cross_loss,
    equivariance_loss,
    min_max_normalised,
    minimum_loss,
    normalised_scores,
    resized,
)
from weakseg.methods.seam import View as SeamView
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import (
    Views,
    multi_scale_maps,
    resize_image,
    resize_through_view,
    stretch_maps,
)
from weakseg.ops.crf_parameters import PARAMETERS
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.pixelcorrelation import pixel_correlation

RESNET38 = SEAM.Settings(backbone=BackboneSettings(name="resnet38", output_stride=8, weights=None, frozen_stages=1))
Vectors = dict[str, np.ndarray]
Network = Callable[[Vectors, int], SEAM]


def filled(parity: Any, seed: int, gain: float, num_classes: int) -> SEAM:
    with torch.device("meta"):
        network = SEAM(RESNET38, num_classes)
    state = {
        name: torch.from_numpy(
            np.asarray(parity.fill.fill(name.removeprefix("backbone."), tuple(value.shape), seed, gain))
        )
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    return network.eval()


@pytest.fixture(scope="module")
def seam(parity: Any) -> Network:
    """`seam(vectors, num_classes)` is a copy of the network of some vectors, which takes seconds to make."""
    original = lru_cache(1)(partial(filled, parity))
    return lambda vectors, num_classes: copy.deepcopy(
        original(int(vectors["fill_seed"]), float(vectors["fill_gain"]), num_classes)
    )


def test_scores_that_are_averaged(parity: Any) -> None:
    vectors = parity("seam/cam_normalise")
    agrees(normalised_scores(torch.from_numpy(vectors["raw"])), vectors["cam"], absolute=1e-6)


def test_norm(parity: Any) -> None:
    vectors = parity("seam/functions")
    maps = torch.from_numpy(vectors["norm_in"]).requires_grad_()
    normalised = min_max_normalised(maps)
    agrees(normalised, vectors["norm_out"], absolute=1e-6)
    normalised.backward(torch.from_numpy(vectors["norm_upstream"]))
    assert maps.grad is not None
    agrees(maps.grad, vectors["norm_grad"], absolute=1e-5)


def test_minimum_loss(parity: Any) -> None:
    vectors = parity("seam/functions")
    scores = torch.from_numpy(vectors["minpool_in"]).requires_grad_()
    revised = torch.cat([torch.zeros_like(scores[:, :1]), scores], dim=1)
    loss = minimum_loss(revised, torch.ones(*scores.shape[:2], 1, 1))
    assert loss.item() == pytest.approx(float(vectors["minpool_loss"]), abs=1e-6)
    loss.backward()
    assert scores.grad is not None
    agrees(scores.grad, vectors["minpool_grad"], absolute=1e-6)


def test_best_class(parity: Any) -> None:
    vectors = parity("seam/functions")
    scores, expected = vectors["onehot_in"], vectors["onehot_out"]
    agrees(best_only(torch.from_numpy(scores[:, 1:])), expected[:, 1:], absolute=1e-6)
    np.testing.assert_array_equal(scores[:, :1], expected[:, :1])


def loss_terms(first: SeamView, second: SeamView, present: Present, tags: Tensor) -> dict[str, Tensor]:
    """The losses by the reference's names."""
    a1, b1, a2, b2 = compared_maps(first, second, present.given)
    terms = {
        "loss_cls1": F.multilabel_soft_margin_loss(first.scores, tags),
        "loss_cls2": F.multilabel_soft_margin_loss(second.scores, tags),
        "loss_rvmin1": minimum_loss(first.revised, present.given),
        "loss_rvmin2": minimum_loss(second.revised, present.given),
        "loss_er": equivariance_loss(a1, a2, tags.shape[1]),
        "loss_ecr1": cross_loss(a2, b1, tags.shape[1]),
        "loss_ecr2": cross_loss(a1, b2, tags.shape[1]),
    }
    minimum = (terms["loss_rvmin1"] + terms["loss_rvmin2"]) / 2
    # The reference counts L_min as classification.
    terms["loss_cls"] = classification_loss(first.scores, second.scores, tags) + minimum
    terms["loss_ecr"] = terms["loss_ecr1"] + terms["loss_ecr2"]
    terms["loss"] = terms["loss_cls"] + terms["loss_er"] + terms["loss_ecr"]
    return terms


@pytest.mark.parametrize("carried", ["present", "all"])
def test_losses(parity: Any, carried: str) -> None:
    """Whether absent classes are carried along makes no difference."""
    vectors = parity("seam/losses")
    tags = torch.from_numpy(vectors["label"])
    num_classes = tags.shape[1]
    every = Present(torch.arange(num_classes).expand(tags.shape), tags[:, :, None, None])
    present = Present.of(tags) if carried == "present" else every
    assert present.classes.shape[1] == (int(tags.sum(1).max()) if carried == "present" else num_classes)
    leaves = {str(name): torch.from_numpy(vectors[str(name)]).requires_grad_() for name in vectors["leaf_names"]}

    def view(maps: Tensor, revised: Tensor) -> SeamView:
        kept = torch.cat([revised[:, :1], present.select(revised[:, 1:])], dim=1)
        return SeamView(maps[:, 1:].mean((2, 3)), present.select(maps[:, 1:]), kept)

    first, second = view(leaves["cam1"], leaves["cam_rv1"]), view(leaves["cam2"], leaves["cam_rv2"])
    terms = loss_terms(first, second, present, tags)
    values = dict(zip(vectors["terms"].tolist(), vectors["values"].tolist(), strict=True))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(values, abs=1e-5)

    for name, norms in zip(vectors["terms"].tolist(), vectors["term_grad_norm"], strict=True):
        gradients = torch.autograd.grad(terms[name], list(leaves.values()), retain_graph=True, materialize_grads=True)
        ours = [float(gradient.double().norm()) for gradient in gradients]
        assert ours == pytest.approx(norms.tolist(), rel=1e-4), name
    terms["loss"].backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        agrees(leaf.grad, vectors[f"grad_{name}"], relative=1e-4)


@torch.no_grad()
def test_network(parity: Any, seam: Network) -> None:
    vectors = parity("seam/network")
    network = seam(vectors, vectors["cam"].shape[1] - 1)
    images = as_batch(vectors["images"])
    stages = network.backbone(images)
    raw = network.fc8(stages[-1])
    agrees(raw, vectors["cam_low"], relative=1e-4)
    compared = network.compared(images, stages)
    agrees(compared[:, ::3], vectors["pcm_feature"], relative=1e-4)
    normalised = normalised_scores(raw)
    agrees(normalised, vectors["pcm_cam"], relative=1e-4)
    revised = pixel_correlation(normalised, network.f9(compared))
    agrees(revised, vectors["pcm_out"], relative=1e-4)
    for low, name in ((raw, "cam"), (revised, "cam_rv")):
        maps = resized(low, images.shape[2:])
        agrees(maps[..., ::3, ::3], vectors[name], relative=1e-4)
        agrees(torch.from_numpy(parity.stats(maps)), vectors[f"{name}_stats"], relative=1e-4)
    agrees(network.activation_maps({"image": images}), vectors["pcm_out"][:, 1:], relative=1e-4)


def test_one_step_of_training(parity: Any, seam: Network) -> None:
    vectors = parity("seam/train_step")
    images, tags = as_batch(vectors["images"]), torch.from_numpy(vectors["label"])
    network = seam(vectors, tags.shape[1])  # in evaluation mode, since the vectors are without dropout
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimiser = torch.optim.SGD(network.param_groups(0.01), momentum=5e-4, weight_decay=5e-4)
    losses = network.losses({"image": images, "tags": tags})
    values = dict(zip(vectors["terms"].tolist(), vectors["values"].tolist(), strict=True))
    assert losses["equivariance"].item() == pytest.approx(values["loss_er"], abs=1e-4)
    assert losses["cross"].item() == pytest.approx(values["loss_ecr"], abs=1e-4)
    assert (losses["classification"] + losses["minimum"]).item() == pytest.approx(values["loss_cls"], abs=1e-4)
    sum(losses.values(), torch.zeros(())).backward()
    optimiser.step()

    learning = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    names = {
        str(name) if (name.startswith(("fc8", "f8", "f9"))) else f"backbone.{name}" for name in vectors["step_names"]
    }
    assert learning == names
    columns = (vectors[f"step_{column}"] for column in ("names", "grad_norm", "delta", "head"))
    for name, norm, delta, head in zip(*columns, strict=True):
        own = next(own for own in learning if own.removeprefix("backbone.") == name)
        parameter = network.get_parameter(own)
        assert parameter.grad is not None
        assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-3), name
        change = (parameter - before[own]).detach().double()
        assert change.norm().item() == pytest.approx(delta[1], rel=1e-3), name
        assert change.sum().item() == pytest.approx(delta[0], abs=1e-3), name
        agrees(parameter.flatten()[:4], head, relative=1e-4)


def crf_scores(image: np.ndarray, maps: np.ndarray, alpha: float) -> np.ndarray:
    background = (1 - maps.max(0, keepdims=True)) ** np.float32(alpha)
    scores = np.concatenate([background, maps])
    (marginals,) = dense_crf(image, [unary_from_probabilities(scores)], PARAMETERS["seam"])
    return marginals


@torch.no_grad()
@pytest.mark.cases("seam/infer", "image_*")
def test_inference(parity: Any, seam: Network, case: str) -> None:
    vectors = parity("seam/infer")
    network = seam(vectors, len(vectors[f"label_{case}"]))
    image = vectors[f"image_{case}"]
    size = image.shape[:2]
    present = vectors[f"label_{case}"].nonzero()[0]
    np.testing.assert_array_equal(present, vectors[f"cam_keys_{case}"])

    views, scales = [], (0.5, 1.0, 1.5, 2.0)
    for scale in scales:
        scaled = as_batch(resize_image(image, scale)[None])
        maps = network.activation_maps({"image": torch.cat([scaled, scaled.flip(3)])})[:, present]
        full = resize_through_view(maps, tuple(scaled.shape[2:]), size)
        views += [full[0], full[1].flip(2)]
    for view, expected, expected_stats in zip(
        views, vectors[f"views_{case}"], vectors[f"view_stats_{case}"], strict=True
    ):
        agrees(view[:, ::2, ::2], expected, relative=1e-4)
        agrees(torch.from_numpy(parity.stats(view)), expected_stats, relative=1e-4)

    labels = [0, *(present + 1).tolist()]
    (summed,) = multi_scale_maps(
        network.activation_maps, Views.of([image], scales), [labels[1:]], "cpu", 1, resize_through_view
    )
    maps = stretch_maps(summed.numpy(), clamp=False)
    expected = vectors[f"cam_{case}"]
    assert (np.abs(maps - expected) <= 2e-3 * np.maximum(1, np.abs(expected))).all()
    np.testing.assert_array_equal(
        stretch_maps(np.zeros((1, 2, 2), np.float32), clamp=False), vectors[f"absent_value_{case}"]
    )

    with_threshold = np.concatenate([np.full((1, *size), 0.26, np.float32), maps])
    wrong = np.array(labels)[with_threshold.argmax(0)] != vectors[f"prediction_{case}"]
    assert wrong.mean() <= 0.005
    for alpha in (4, 24):
        np.testing.assert_array_equal(labels, vectors[f"crf_{alpha}_keys_{case}"])
        wrong = crf_scores(image, maps, alpha).argmax(0) != vectors[f"crf_{alpha}_{case}"].argmax(0)
        assert wrong.mean() <= 0.01
