"""CONTA against its reference: confounders, context maps with gradients, alignment with views, injection, an update.

The vectors are float64 and so is the network here; what is stored as float32 is compared at the reference's tolerance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import agrees
from weakseg.labels import Classes
from weakseg.methods import base
from weakseg.methods.conta import (
    Adjustment,
    Confounders,
    ConfounderSums,
    Contextual,
    attention,
    cleaned,
    context_map,
    contextual,
    foreground_share,
)
from weakseg.models.backbone import Backbone
from weakseg.ops.fields import in_view

TOLERANCE = {"absolute": 1e-6, "relative": 1e-5}
"""That of conta.md, section 10."""


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array))


# Confounders ----------------------------------------------------------------------------------------------------------


def images_of(vectors: dict[str, np.ndarray]) -> list[tuple[np.ndarray, list[int]]]:
    """Masks with the labels of their tags."""
    return [(vectors[f"mask{i}"], (np.flatnonzero(tags) + 1).tolist()) for i, tags in enumerate(vectors["tags"])]


def test_cleaned_masks_and_their_foreground(parity: Any) -> None:
    vectors = parity("conta/confounders")
    grid = tuple(vectors["hw"].tolist())
    for i, (mask, tags) in enumerate(images_of(vectors)):
        np.testing.assert_array_equal(cleaned(mask, tags), vectors[f"cleaned{i}"])
        agrees(foreground_share(mask, tags, grid), vectors["x"][i], **TOLERANCE)


@pytest.mark.parametrize(("average", "suffix"), [("tagged", ""), ("predicted", "_by_prediction")])
def test_confounders(parity: Any, average: Any, suffix: str, tmp_path: Path) -> None:
    vectors = parity("conta/confounders")
    sums = ConfounderSums(int(vectors["n"]), tuple(vectors["hw"].tolist()))
    for mask, tags in images_of(vectors):
        sums.add(mask, tags)
    classes = Classes([f"class {i}" for i in range(int(vectors["n"]))])
    sums.confounders(average).save(tmp_path / "confounders.npz", classes)
    found = Confounders.load(tmp_path / "confounders.npz", classes)
    agrees(found.confounder, vectors[f"confounder{suffix}"], **TOLERANCE)
    np.testing.assert_array_equal(found.count, vectors[f"count{suffix}"])


# The context of an image ----------------------------------------------------------------------------------------------


@pytest.mark.cases("conta/context", "x_*")
def test_context_maps_and_their_gradients(parity: Any, case: str) -> None:
    vectors = parity("conta/context")
    x, confounder, present = (tensor(vectors[f"{name}_{case}"]) for name in ("x", "confounder", "present"))
    w1, w2 = (tensor(vectors[f"{name}_{case}"]).requires_grad_() for name in ("w1", "w2"))
    prior = torch.full((len(confounder),), 1 / len(confounder), dtype=torch.float64)
    alpha = attention(x @ w1.T, confounder @ w2.T, present)
    maps = context_map(alpha, confounder, prior)
    agrees(alpha, vectors[f"alpha_{case}"], **TOLERANCE)
    agrees(maps.reshape(vectors[f"M_{case}"].shape), vectors[f"M_{case}"], **TOLERANCE)
    (maps * tensor(vectors[f"upstream_{case}"])).sum().backward()
    agrees(w1.grad, vectors[f"grad_w1_{case}"], **TOLERANCE)
    agrees(w2.grad, vectors[f"grad_w2_{case}"], **TOLERANCE)
    uniform = context_map(attention(x[:1] * 0, confounder * 0, present), confounder, prior)
    agrees(uniform[0].reshape(vectors[f"M_uniform_{case}"].shape), vectors[f"M_uniform_{case}"], **TOLERANCE)


def test_the_released_function(parity: Any) -> None:
    """It has biases, and a joint space of another dimension than the number of classes."""
    vectors = {name: tensor(array) for name, array in parity("conta/zdic").items()}
    query = F.linear(vectors["y"], vectors["wy"], vectors["by"])
    keys = F.linear(vectors["dictionary"], vectors["wz"], vectors["bz"])
    assert keys.shape[1] == int(vectors["embedding"])
    alpha = attention(query, keys, torch.ones(len(keys), dtype=torch.bool))
    agrees(
        context_map(alpha, vectors["dictionary"], vectors["prior"]), vectors["z"].numpy(), absolute=1e-6, relative=1e-6
    )


def test_one_pass_is_the_geometric_mean_over_contexts(parity: Any) -> None:
    vectors = {name: tensor(array) for name, array in parity("conta/nwgm").items()}
    weight, bias, prior = vectors["weight"], vectors["bias"], vectors["prior"]
    maps = context_map(vectors["alpha"][None], vectors["confounder"], prior)[0]
    assert torch.allclose(torch.sigmoid(weight @ maps + bias), vectors["nwgm"], rtol=0, atol=1e-12)
    assert torch.allclose(torch.sigmoid(weight @ maps + bias), vectors["single_pass"], rtol=0, atol=1e-12)
    # Context i alone, met with certainty.
    alone = [
        weight @ context_map(alpha[None], vectors["confounder"], torch.ones_like(prior))[0] + bias
        for alpha in torch.diag(vectors["alpha"])
    ]
    of_each = torch.sigmoid(torch.stack(alone))
    assert torch.allclose(prior @ of_each, vectors["expectation"], rtol=0, atol=1e-12)


# Beside the features --------------------------------------------------------------------------------------------------


def geometry(box: np.ndarray, size: np.ndarray, flip: Any) -> Tensor:
    """(1, 5) of a box in pixels of an image of a size."""
    height, width = size.tolist()
    return torch.tensor([[*(box / [height, width, height, width]).tolist(), float(flip)]], dtype=torch.float64)


@pytest.mark.cases("conta/align", "box*")
def test_alignment(parity: Any, case: str) -> None:
    vectors = parity("conta/align")
    expected = vectors[f"aligned{case}"]
    view = geometry(vectors[f"box{case}"], vectors[f"image_hw{case}"], vectors[f"flip{case}"])
    found = in_view(tensor(vectors["M"])[None, None], view, expected.shape)
    agrees(found[0, 0], expected, **TOLERANCE)


class Given(Backbone):
    """The features of five stages are what it is given as images."""

    channels = (1, 1, 1, 1, 1)
    strides = (1, 1, 1, 1, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images] * 5

    def reading(self, stage: int) -> list[nn.Conv2d]:
        return []

    def freeze(self, stages: int) -> None:
        pass

    def pass_gradients(self, after: int) -> None:
        pass


class Linear(base.Localiser):
    """A classifier of given features."""

    def __init__(self, settings: Any, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.backbone = Given()
        self.classifier = nn.Conv2d(self.channels, num_classes, 1, bias=False)

    channels = 1

    def class_layer(self) -> nn.Conv2d:
        return self.classifier

    def scores(self, batch: base.Batch) -> Tensor:
        return self.classifier(self.backbone(batch["image"])[-1].mean((2, 3), keepdim=True)).flatten(1)

    def activation_maps(self, batch: base.Batch) -> Tensor:
        return self.classifier(self.backbone(batch["image"])[-1])

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        return {"classification": F.multilabel_soft_margin_loss(self.scores(batch), batch["tags"])}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": list(self.classifier.parameters()), "lr": lr}]


def adjusted(vectors: dict[str, np.ndarray], settings: Adjustment, grid: tuple[int, ...]) -> Contextual:
    """A linear classifier with the weights of the vectors, the weight of M among them."""
    weight = tensor(vectors["weight_features"])
    plain = type("Sized", (Linear,), {"channels": weight.shape[1]})
    cls = contextual(plain)
    network = cls(cls.Settings(conta=settings, grid=grid), len(weight)).double()
    assert isinstance(network, Contextual)
    with torch.no_grad():
        network.classifier.weight.copy_(weight[:, :, None, None])
        network.conta.context_weight[0].copy_(tensor(vectors["weight_M"])[:, None, None, None])
    return network


def test_a_map_beside_the_last_features(parity: Any) -> None:
    vectors = parity("conta/inject")
    network = adjusted(vectors, Adjustment(context="mask"), vectors["M"].shape[1:])
    network.conta.mask_scale.fill_(1)  # M is what is given
    maps, features = tensor(vectors["M"]), tensor(vectors["features"])
    view = torch.tensor([[0.0, 0, 1, 1, 0]], dtype=torch.float64).expand(len(maps), -1)
    batch = {"image": features, "context": maps.requires_grad_(), "view": view, "tags": tensor(vectors["labels"])}
    aligned = in_view(maps[:, None], view, features.shape[2:])
    agrees(aligned[:, 0], vectors["M_at_features"], **TOLERANCE)
    agrees(network.activation_maps(batch), vectors["cam"], **TOLERANCE)
    scores = network.scores(batch)
    agrees(scores, vectors["score"], **TOLERANCE)
    signed = torch.where(batch["tags"] > 0, scores, -scores)
    agrees(-F.logsigmoid(signed).sum(1), vectors["paper_nll"], **TOLERANCE)
    loss = network.losses(batch)["classification"]
    agrees(loss, vectors["loss"], **TOLERANCE)
    loss.backward()
    agrees(network.classifier.weight.grad[:, :, 0, 0], vectors["grad_weight_features"], **TOLERANCE)
    agrees(network.conta.context_weight[0].grad.flatten(), vectors["grad_weight_M"], **TOLERANCE)
    # The transposed alignment of its gradient is the gradient of M on its own grid.
    (expected,) = torch.autograd.grad(aligned[:, 0], maps, tensor(vectors["grad_M_at_features"]))
    agrees(maps.grad, expected.numpy(), **TOLERANCE)


def test_an_update_of_all_weights(parity: Any) -> None:
    vectors = parity("conta/step")
    network = adjusted(vectors, Adjustment(), vectors["canonical_hw"])
    context, grid = network.conta, tuple(vectors["canonical_hw"].tolist())
    with torch.no_grad():
        for name in ("w1", "w2", "confounder", "prior"):
            getattr(context, name).copy_(tensor(vectors[name]))
    context.present.fill_(True)
    boxes = zip(vectors["boxes"], vectors["image_hw"], vectors["flips"], strict=True)
    batch = {
        "image": tensor(vectors["features"]),
        "context": tensor(vectors["x"]).reshape(-1, *grid),
        "view": torch.cat([geometry(*box) for box in boxes]),
        "tags": tensor(vectors["labels"]),
    }
    agrees(context.attention(batch["context"]), vectors["alpha"], **TOLERANCE)
    maps = context(batch["context"])
    agrees(maps, vectors["M"], **TOLERANCE)
    agrees(in_view(maps[:, None], batch["view"], batch["image"].shape[2:])[:, 0], vectors["M_at_features"], **TOLERANCE)
    agrees(network.scores(batch), vectors["score"], **TOLERANCE)
    optimiser = torch.optim.SGD(network.parameters(), lr=float(vectors["lr"]))
    loss = network.losses(batch)["classification"]
    agrees(loss, vectors["loss_before"], **TOLERANCE)
    loss.backward()
    weights = {
        "w1": context.w1,
        "w2": context.w2,
        "weight_features": network.classifier.weight,
        "weight_M": context.context_weight[0],
    }
    for name, weight in weights.items():
        agrees(weight.grad.reshape(vectors[f"grad_{name}"].shape), vectors[f"grad_{name}"], **TOLERANCE)
    optimiser.step()
    for name, weight in weights.items():
        agrees(weight.reshape(vectors[f"new_{name}"].shape), vectors[f"new_{name}"], **TOLERANCE)
    agrees(network.losses(batch)["classification"], vectors["loss_after"], **TOLERANCE)
