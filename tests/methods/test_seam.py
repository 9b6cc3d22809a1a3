from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from weakseg.methods.base import Localiser, find_method
from weakseg.methods.seam import (
    SEAM,
    Present,
    View,
    best_only,
    compared_maps,
    cross_loss,
    equivariance_loss,
    mean_resized,
    min_max_normalised,
    minimum_loss,
    normalised_scores,
    resized,
    scaled_size,
)
from weakseg.models.registry import BACKBONES, BackboneSettings


def build(name: str = "small", classes: int = 3, **settings: object) -> SEAM:
    torch.manual_seed(0)
    backbone = BackboneSettings(name=name, output_stride=8, weights=None)
    return SEAM(SEAM.Settings(backbone=backbone, **settings), classes)  # type: ignore[arg-type]


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(height: int = 48, width: int = 56) -> dict[str, Tensor]:
    return {"image": random(2, 3, height, width), "tags": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_is_found_by_its_name() -> None:
    assert find_method(Localiser, "seam") is SEAM


@pytest.mark.parametrize(
    "name", [name for name in BACKBONES if name not in ("resnet38", "resnet101", "deeplab_resnet101")]
)
def test_every_backbone_can_be_tapped(name: str) -> None:
    network = build(name).eval()
    images = random(1, 3, 40, 50)
    with torch.no_grad():
        maps, scores = network.activation_maps({"image": images}), network.scores({"image": images})
    assert maps.shape == (1, 3, *network.backbone(images)[-1].shape[2:])
    assert scores.shape == (1, 3)
    assert ((maps >= 0) & (maps <= 1)).all()


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_taps_of_other_sizes_are_brought_to_that_of_the_maps(stride: int) -> None:
    backbone = BackboneSettings(name="mobilenet_v2", output_stride=stride, weights=None)
    network = SEAM(SEAM.Settings(backbone=backbone, low_stage=2, high_stage=5), 3).eval()
    assert network.activation_maps({"image": random(1, 3, 64, 96)}).shape == (1, 3, 64 // stride, 96 // stride)


def gradients(network: SEAM, term: str) -> set[str]:
    """The parts of the network that a term of the loss trains."""
    network.zero_grad()
    network.losses(batch())[term].backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {name.split(".")[0] for name in trained}


def test_which_term_trains_what() -> None:
    network = build().eval()
    classifier, correlation = {"backbone", "fc8"}, {"f8_3", "f8_4", "f9"}
    assert gradients(network, "classification") == classifier
    assert gradients(network, "equivariance") == classifier
    assert gradients(network, "cross") == correlation
    assert gradients(network, "minimum") == correlation


def test_the_weights_of_the_terms() -> None:
    plain = build().eval().losses(batch())
    weighted = build(equivariance=2.0, cross=0.5, minimum=0.0).eval().losses(batch())
    factors = {"classification": 1.0, "equivariance": 2.0, "cross": 0.5, "minimum": 0.0}
    assert list(plain) == list(factors)
    for name, factor in factors.items():
        torch.testing.assert_close(weighted[name], factor * plain[name])


def dense_losses(network: SEAM, images: Tensor, tags: Tensor) -> dict[str, Tensor]:
    """The losses as the paper's program has them: everything for all classes, at full size, with dense matrices."""
    classes, size2 = tags.shape[1], scaled_size(images.shape[2:], network.settings.second_scale)
    given = torch.cat([torch.ones(len(tags), 1), tags], 1)[:, :, None, None]
    a, b, terms = [], [], {"classification": torch.zeros(()), "minimum": torch.zeros(())}
    for x in (images, F.interpolate(images, size2, mode="bilinear", align_corners=True)):
        raw, features = network.raw_maps(x)
        unit = (features / (features.norm(dim=1, keepdim=True) + 1e-5)).flatten(2)
        similarity = (unit.mT @ unit).relu()
        weights = similarity / (similarity.sum(1, keepdim=True) + 1e-5)
        revised = (normalised_scores(raw).flatten(2) @ weights).unflatten(2, raw.shape[2:])
        p, r = (F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=True) for m in (raw, revised))
        terms["classification"] += F.multilabel_soft_margin_loss(p.mean((2, 3))[:, 1:], tags) / 2
        best = (r * given)[:, 1:].amax(1).flatten(1).sort(1).values
        terms["minimum"] += best[:, : best.shape[1] // 4].mean() / 2
        a.append(F.interpolate(min_max_normalised(p), size2, mode="bilinear", align_corners=True) * given)
        b.append(F.interpolate(min_max_normalised(r), size2, mode="bilinear", align_corners=True) * given)
    terms["equivariance"] = (a[0] - a[1])[:, 1:].abs().mean()
    terms["cross"] = torch.zeros(())
    for target, revised in ((a[1], b[0]), (a[0], b[1])):
        one = torch.cat([1 - target[:, 1:].amax(1, keepdim=True), best_only(target[:, 1:])], 1).detach()
        hardest = (one - revised).abs().flatten(1).sort(1, descending=True).values
        terms["cross"] += hardest[:, : int((1 + classes) * size2[0] * size2[1] * 0.2)].mean()
    return terms


@pytest.mark.parametrize(
    "tags", [[[1, 0, 1], [0, 1, 0]], [[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]], ids=["some", "all", "none"]
)
def test_the_losses_are_those_of_the_plain_dense_form(tags: list[list[int]]) -> None:
    network, images = build().eval(), batch()["image"]
    truth = torch.tensor(tags, dtype=torch.float32)
    ours, expected = network.losses({"image": images, "tags": truth}), dense_losses(network, images, truth)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    parameters = [p for p in network.parameters() if p.requires_grad]
    pairs = zip(*(torch.autograd.grad(total(losses), parameters) for losses in (ours, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31 - 1)
)  # fmt: skip
def test_the_mean_of_a_resized_map_needs_no_resizing(h: int, w: int, height: int, width: int, seed: int) -> None:
    maps = random(2, 3, h, w, seed=seed).double()
    expected = resized(maps, (height, width)).mean((2, 3))
    torch.testing.assert_close(mean_resized(maps, (height, width)), expected)


def test_an_image_without_a_label_has_no_loss_of_maps() -> None:
    network = build().eval()
    losses = network.losses({"image": batch()["image"], "tags": torch.zeros(2, 3)})
    assert losses["equivariance"] == 0
    assert losses["minimum"] == 0
    assert losses["classification"] > 0
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 40), (33, 17)])
def test_any_size(size: tuple[int, int]) -> None:
    network = build("mobilenet_v2").eval()
    losses = network.losses(batch(*size))
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_constant_and_negative_maps() -> None:
    constant = torch.full((1, 2, 4, 5), 3.0, requires_grad=True)
    normalised = min_max_normalised(constant)
    normalised.sum().backward()
    assert (normalised == 0).all()
    assert constant.grad is not None
    assert (constant.grad == 0).all()
    scores = normalised_scores(torch.full((1, 3, 4, 5), -2.0))
    assert (scores[:, 0] == 1).all()
    assert (scores[:, 1:] == 0).all()


def test_identical_views_differ_in_nothing() -> None:
    present = Present.of(torch.tensor([[0.0, 1.0, 1.0]]))
    maps = random(1, 2, 12, 16)
    view = View(random(1, 3), maps, torch.cat([random(1, 1, 12, 16, seed=2), maps], dim=1))
    a1, b1, a2, b2 = compared_maps(view, view, present.given)
    assert equivariance_loss(a1, a2, 3) == 0
    assert cross_loss(a2, b1, 3) == cross_loss(a1, b2, 3)
    assert minimum_loss(view.revised, present.given) >= 0


def test_equal_best_classes_stay() -> None:
    scores = torch.tensor([0.5, 0.5, 0.2]).reshape(1, 3, 1, 1)
    assert best_only(scores).flatten().tolist() == [0.5, 0.5, 0.0]


def test_the_losses_keep_full_precision_under_bf16() -> None:
    network = build(dropout=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        losses = network.losses(batch())
    assert all(value.dtype == torch.float32 for value in losses.values())
    with torch.no_grad():
        for name, exact in network.losses(batch()).items():
            torch.testing.assert_close(losses[name], exact, rtol=0.1, atol=0.02)


def test_a_centred_start_is_blind_to_the_common_level_of_a_tap() -> None:
    plain, centred = build("mobilenet_v2"), build("mobilenet_v2", centred=True)
    features = random(1, 195, 5, 6)
    shifts = torch.cat([torch.zeros(3), torch.full((64,), 2.0), torch.full((128,), -3.0)])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(centred.f9(features + shifts), centred.f9(features), rtol=0, atol=1e-4)
        assert (plain.f9(features + shifts) - plain.f9(features)).abs().max() > 1
        assert torch.equal(centred.f9.weight[:, :3], plain.f9.weight[:, :3])


def test_new_layers_learn_faster() -> None:
    network = build("resnet18", head_lr_factor=5.0)
    rates = {id(p): group["lr"] for group in network.param_groups(0.1) for p in group["params"]}
    assert rates[id(network.backbone.get_parameter("layer3.0.conv1.weight"))] == pytest.approx(0.1)
    for layer in (network.fc8, network.f8_3, network.f8_4, network.f9):
        assert rates[id(layer.weight)] == pytest.approx(0.5)


def test_defaults_are_those_of_the_paper() -> None:
    settings = SEAM.Settings()
    assert settings.backbone == BackboneSettings(name="resnet38", output_stride=8, frozen_stages=1)
    assert (settings.second_scale, settings.low_channels, settings.high_channels) == (0.3, 64, 128)
    assert (settings.equivariance, settings.cross, settings.minimum) == (1, 1, 1)
    assert settings.head_lr_factor == 10
