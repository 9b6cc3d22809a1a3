"""CONTA: any localiser with a context map beside its features, and the class-average masks behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.files import write_npz
from weakseg.labels import Classes
from weakseg.methods.base import Localiser, find_method
from weakseg.methods.cam import CAM
from weakseg.methods.conta import (
    Adjustment,
    Confounders,
    ConfounderSums,
    Contextual,
    ImageContext,
    attention,
    contextual,
    foreground_share,
)
from weakseg.models.registry import BACKBONES, BackboneSettings
from weakseg.ops.activation import Views, multi_scale_maps
from weakseg.ops.fields import in_view

GRID, CLASSES = (4, 5), 3
WHOLE = (0.0, 0.0, 1.0, 1.0, 0.0)
POSITIONS: list[Any] = [2, 3, 4, 5, "dense"]
FOUND = Confounders(np.random.default_rng(1).random((CLASSES, *GRID), np.float32), np.array([3, 1, 2]), images=5)


def made(method: str, position: Any = 5, backbone: str = "small", **more: Any) -> Contextual:
    """A localiser with a context, whose confounders are random."""
    cls = find_method(Localiser, f"conta:{method}")
    stride = 8 if backbone != "mobilenet_v2" else 16
    values = {"backbone": {"name": backbone, "output_stride": stride, "weights": None}, **more}
    torch.manual_seed(0)
    made = cls(cls.Settings.model_validate({**values, "conta": {"position": position}, "grid": GRID}), CLASSES)
    assert isinstance(made, Contextual)
    made.conta.set_confounders(FOUND)
    return made


def plain(method: str, backbone: str = "small", **more: Any) -> Localiser:
    cls = find_method(Localiser, method)
    values = {"backbone": {"name": backbone, "output_stride": 8 if backbone != "mobilenet_v2" else 16, "weights": None}}
    torch.manual_seed(0)
    return cls(cls.Settings.model_validate({**values, **more}), CLASSES)


@torch.no_grad()
def with_weights(network: Contextual) -> Contextual:
    """The weights beside the layers at random, rather than 0."""
    for weight in network.conta.context_weight:
        weight.copy_(torch.randn_like(weight))
    return network


def batch_of(size: int = 40, views: tuple[tuple[float, ...], ...] = (WHOLE, WHOLE)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    tags = torch.zeros(len(views), CLASSES)
    tags[:, 0], tags[0, 2] = 1, 1
    return {
        "image": torch.randn(len(views), 3, size, size, generator=generator),
        "tags": tags,
        "superpixels": torch.arange(size * size).reshape(1, size, size).expand(len(views), -1, -1) // 50,
        "context": torch.rand(len(views), *GRID, generator=generator),
        "view": torch.tensor(views),
    }


# The plain localiser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [5, "dense"])
@pytest.mark.parametrize("method", ["cam", "seam", "icd"])
@pytest.mark.parametrize("zero", ["context", "weights"])
def test_nothing_changes_without_a_context_or_at_the_start(method: str, position: Any, zero: str) -> None:
    network, other, batch = made(method, position), plain(method), batch_of()
    missing = network.load_state_dict(other.state_dict(), strict=False)
    assert all(name.startswith("conta.") for name in missing.missing_keys)
    assert missing.unexpected_keys == []
    if zero == "context":
        with_weights(network)
        network.conta.confounder.zero_()
    for call in ("losses", "scores", "activation_maps"):
        found = []
        for each in (network, other):
            each.train(call == "losses")
            torch.manual_seed(3)
            found.append(getattr(each, call)(batch))
        for one, two in zip(*(f.values() if isinstance(f, dict) else [f] for f in found), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("method", ["cam", "seam", "icd"])
def test_with_both_something_changes(method: str) -> None:
    network, other, batch = with_weights(made(method)).eval(), plain(method).eval(), batch_of()
    assert not torch.allclose(network.scores(batch), other.scores(batch))


# Which layers see it, and what they see -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BACKBONES if not name.startswith("vgg")])
def test_all_convolutions_that_read_a_stage_are_named(name: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](8, True)
        seen: list[tuple[nn.Module, Tensor]] = []
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0])))
        features = backbone(torch.empty(1, 3, 64, 64))
    for stage in (2, 3, 4):
        reading = [module for module, read in seen if read is features[stage - 1]]
        assert {*map(id, reading)} == {*map(id, backbone.reading(stage))}


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("vgg")])
def test_the_layers_of_vgg_read_a_stage_by_way_of_its_pooling(name: str) -> None:
    backbone = BACKBONES[name](8, True)
    for stage, layer in ((2, "conv4_1"), (3, "conv5_1"), (4, "fc6")):
        assert backbone.reading(stage) == [backbone.get_submodule(layer)]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backbone", ["small", "mobilenet_v2"])
def test_a_layer_gives_what_it_would_give_with_one_more_channel(backbone: str, position: Any) -> None:
    network = with_weights(made("cam", position, backbone)).eval()
    batch = batch_of(views=((-0.5, 0.0, 0.5, 1.5, 1.0), WHOLE))
    checked = 0

    def check(layer: nn.Conv2d, weight: Tensor) -> Any:
        def compare(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            nonlocal checked
            maps = in_view(network.conta(batch["context"])[:, None], batch["view"], inputs[0].shape[2:])
            wider = torch.cat([layer.weight, weight], dim=1)
            expected = F.conv2d(
                torch.cat([inputs[0], maps], 1), wider, None, layer.stride, layer.padding, layer.dilation
            )
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
            checked += 1

        return compare

    stages = (2, 3, 4, 5) if position == "dense" else (position,)
    layers = [layer for s in stages for layer in ([network.class_layer()] if s == 5 else network.backbone.reading(s))]
    for layer, weight in zip(layers, network.conta.context_weight, strict=True):
        layer.register_forward_hook(check(layer, weight))
    network.activation_maps(batch)
    assert checked == len(layers)


def test_the_score_is_the_mean_of_the_map() -> None:
    """Also of what M adds, though the classifier of CAM is only shown the mean of the features."""
    network = with_weights(made("cam")).eval()
    batch = batch_of(views=((0.25, 0.0, 0.75, 0.5, 1.0), (-1.0, 0.0, 1.0, 2.0, 0.0)))
    features = network.backbone(batch["image"])[-1]
    maps = in_view(network.conta(batch["context"])[:, None], batch["view"], features.shape[2:])
    raw = network.classifier(features) + network.conta.context_weight[0].flatten()[:, None, None] * maps
    torch.testing.assert_close(network.scores(batch), raw.mean((2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.activation_maps(batch), F.relu(raw), atol=1e-5, rtol=1e-5)


def test_folded_normalisation_leaves_the_context_as_it_was() -> None:
    from weakseg.models.norm import fold_norms

    network, batch = with_weights(made("cam", "dense", "mobilenet_v2")).eval(), batch_of()
    before = network.activation_maps(batch)
    fold_norms(network)
    torch.testing.assert_close(network.activation_maps(batch), before, atol=1e-4, rtol=1e-4)


def test_the_background_of_seam_and_its_comparison_of_pixels_do_not_see_the_context() -> None:
    network, batch = with_weights(made("seam", dropout=0)).eval(), batch_of()
    without_maps, without_features = network.raw_maps(batch["image"])
    with network._with_context(batch):
        maps, features = network.raw_maps(batch["image"])
    assert torch.equal(features, without_features)
    assert torch.equal(maps[:, 0], without_maps[:, 0])
    added = in_view(network.conta(batch["context"])[:, None], batch["view"], maps.shape[2:])
    weight = network.conta.context_weight[0].flatten()[:, None, None]
    torch.testing.assert_close(maps[:, 1:] - without_maps[:, 1:], weight * added, atol=1e-5, rtol=1e-5)


def test_dropout_of_features_does_not_drop_the_context() -> None:
    network, batch = with_weights(made("cam", form="affinitynet")).train(), batch_of()
    torch.manual_seed(1)
    scores = network.scores(batch)
    network.conta.confounder.zero_()
    torch.manual_seed(1)
    without = network.scores(batch)
    network.conta.set_confounders(FOUND)
    maps = in_view(network.conta(batch["context"])[:, None], batch["view"], (5, 5)).mean((2, 3))
    weight = network.conta.context_weight[0].flatten()
    torch.testing.assert_close(scores - without, weight * maps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", [2, "dense"])
def test_a_frozen_stage_lets_the_context_learn(position: Any) -> None:
    backbone = {"name": "resnet18", "output_stride": 16, "weights": None, "frozen_stages": 3}
    cls = find_method(Localiser, "conta:cam")
    torch.manual_seed(0)
    network = cls(cls.Settings.model_validate({"backbone": backbone, "conta": {"position": position}, "grid": GRID}), 3)
    assert isinstance(network, Contextual)
    network.conta.set_confounders(FOUND)
    with_weights(network).losses(batch_of())["classification"].backward()
    for name, parameter in network.conta.named_parameters():
        assert parameter.grad is not None, name
    assert network.conta.w1.grad is not None and network.conta.w1.grad.abs().max() > 0
    frozen = [p for stage in network.backbone.stages()[:3] for module in stage for p in module.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize("method", ["cam", "seam", "icd"])
def test_every_weight_is_in_one_group_and_the_new_ones_learn_ten_times_as_fast(method: str) -> None:
    network, other = made(method, "dense"), plain(method)
    *groups, new = network.param_groups(0.5)
    assert new["lr"] == 5
    assert {*map(id, new["params"])} == {*map(id, network.conta.parameters())}
    names = {id(parameter): name for each in (network, other) for name, parameter in each.named_parameters()}
    for group, expected in zip(groups, other.param_groups(0.5), strict=True):
        assert [names[id(p)] for p in group["params"]] == [names[id(p)] for p in expected["params"]]
        assert {key: group[key] for key in group if key != "params"} == {
            key: expected[key] for key in expected if key != "params"
        }


# Alignment ------------------------------------------------------------------------------------------------------------


def sampled(maps: np.ndarray, y: float, x: float) -> float:
    """A map (h, w) at a place in parts of its sides: bilinear between centres of cells, 0 outside."""
    if not (0 <= y <= 1 and 0 <= x <= 1):
        return 0.0
    height, width = maps.shape
    row, column = (min(max(place * side - 0.5, 0), side - 1) for place, side in ((y, height), (x, width)))
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    upper = maps[top, left] * (1 - across) + maps[top, right] * across
    return float(upper * (1 - down) + (maps[bottom, left] * (1 - across) + maps[bottom, right] * across) * down)


SIDES = st.integers(1, 6)
ENDS = st.tuples(st.floats(-1, 0.9), st.floats(0.1, 1.5))


@settings(max_examples=40)
@given(SIDES, SIDES, SIDES, SIDES, ENDS, ENDS, st.booleans())
def test_a_view_shows_each_place_where_the_image_has_it(
    h: int, w: int, rows: int, columns: int, along: tuple[float, float], across: tuple[float, float], mirrored: bool
) -> None:
    maps = np.random.default_rng(h * w).random((h, w))
    (top, height), (left, width) = along, across
    view = torch.tensor([[top, left, top + height, left + width, mirrored]], dtype=torch.float64)
    found = in_view(torch.from_numpy(maps)[None, None], view, (rows, columns))[0, 0]
    for row in range(rows):
        for column in range(columns):
            seen = columns - 1 - column if mirrored else column
            y, x = top + (row + 0.5) * height / rows, left + (seen + 0.5) * width / columns
            if min(abs(place - end) for place in (y, x) for end in (0, 1)) > 1e-9:
                assert float(found[row, column]) == pytest.approx(sampled(maps, y, x), abs=1e-9)


def test_images_of_a_batch_are_aligned_each_by_its_own_view() -> None:
    network = with_weights(made("cam", "dense")).eval()
    batch = batch_of(views=((0.25, 0.0, 0.75, 0.5, 1.0), (-1.0, 0.5, 1.0, 1.5, 0.0)))
    together = network.activation_maps(batch)
    for place in range(2):
        alone = {name: values[place : place + 1] for name, values in batch.items()}
        torch.testing.assert_close(network.activation_maps(alone), together[place : place + 1])


def test_at_inference_the_map_follows_scales_and_the_mirror_image() -> None:
    """Of a network that sees nothing but the context, the sum over views is the context map once for each."""
    network = made("cam").eval()
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.conta.context_weight[0].fill_(1)
    image = np.zeros((64, 80, 3), np.uint8)
    x = np.random.default_rng(0).random(GRID, np.float32)
    fields = {name: field for name, field in network.fields.items() if field.at_inference}
    views = Views.of([image], (1.0, 2.0), fields=fields, values=[{"context": x}])
    found = multi_scale_maps(network.activation_maps, views, [[1]], "cpu", stride=8)[0][0]
    maps = network.conta(torch.from_numpy(x)[None])[:, None]
    whole = torch.tensor([WHOLE])
    small, large = in_view(maps, whole, (8, 10)), in_view(maps, whole, (16, 20))
    expected = 2 * (small + F.interpolate(large, (8, 10), mode="bilinear", align_corners=False))
    torch.testing.assert_close(found, expected[0, 0], atol=1e-6, rtol=1e-5)


# The context of an image ----------------------------------------------------------------------------------------------


def test_absent_classes_get_no_attention_and_no_class_at_all_no_context() -> None:
    query, keys = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    alpha = attention(query, keys, torch.tensor([True, False, True, True]))
    assert torch.equal(alpha[:, 1], torch.zeros(2))
    torch.testing.assert_close(alpha.sum(1), torch.ones(2))
    none = attention(query, keys, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(none, torch.zeros(2, 4))
    none.sum().backward()
    assert torch.isfinite(keys.grad).all()
    assert torch.equal(attention(query[:1], keys[:1].detach(), torch.tensor([True])), torch.ones(1, 1))


def context_of(found: Confounders = FOUND, **changes: Any) -> ImageContext:
    context = ImageContext(Adjustment(**changes), GRID, len(found.count))
    context.set_confounders(found)
    return context


def test_an_image_without_foreground_meets_all_present_classes_alike() -> None:
    found = Confounders(FOUND.confounder * np.array([1, 0, 1], np.float32)[:, None, None], np.array([3, 0, 2]), 5)
    alpha = context_of(found).attention(torch.zeros(1, *GRID))
    torch.testing.assert_close(alpha, torch.tensor([[0.5, 0, 0.5]]))


def test_the_controls_of_the_context() -> None:
    x = torch.rand(2, *GRID)
    mean = torch.from_numpy(FOUND.confounder).mean(0)
    torch.testing.assert_close(context_of(attention="uniform")(x)[0], mean / CLASSES)
    assert list(context_of(attention="uniform").parameters()) == []
    torch.testing.assert_close(context_of(attention="uniform", scale=CLASSES)(x)[1], mean)
    by_count = torch.from_numpy(np.tensordot(FOUND.count / FOUND.count.sum(), FOUND.confounder, 1)).float() / CLASSES
    torch.testing.assert_close(context_of(attention="uniform", prior="frequency")(x)[0], by_count)


def test_a_mask_as_context_has_the_mean_of_the_context_map() -> None:
    rng, sums, masks = np.random.default_rng(0), ConfounderSums(CLASSES, GRID), []
    for number in range(6):
        mask, tags = rng.integers(0, CLASSES + 1, (13, 17)).astype(np.uint8), {1 + number % CLASSES, 2}
        sums.add(mask, tags)
        masks.append(torch.from_numpy(foreground_share(mask, tags, GRID)))
    found = sums.confounders()
    maps = context_of(found, context="mask")(torch.stack(masks))
    uniform = context_of(found, attention="uniform")(torch.stack(masks))
    torch.testing.assert_close(maps.mean(), uniform.mean())
    torch.testing.assert_close(maps / maps.mean(), torch.stack(masks) / torch.stack(masks).mean())


def test_confounders_of_another_grid_are_refused() -> None:
    with pytest.raises(WeaksegError, match=r"\(4, 5\)"):
        ImageContext(Adjustment(), (4, 4), CLASSES).set_confounders(FOUND)


# Confounders ----------------------------------------------------------------------------------------------------------


def averaged(masks: list[tuple[np.ndarray, set[int]]], label: int, tagged: bool) -> np.ndarray:
    """One confounder by PyTorch's pooling."""
    shares = [
        F.adaptive_avg_pool2d(torch.from_numpy((mask == label).astype(np.float64))[None], GRID)[0].numpy()
        for mask, tags in masks
        if label in tags and (tagged or (mask == label).any())
    ]
    return np.mean(shares, axis=0) if shares else np.zeros(GRID)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.sets(st.integers(1, CLASSES))), max_size=6))
def test_confounders_are_averages_in_any_order_and_parts(images: list[tuple[int, int, set[int]]]) -> None:
    rng = np.random.default_rng(len(images))
    masks = []
    for height, width, tags in images:
        values = rng.integers(0, CLASSES + 2, (height, width)).astype(np.uint8)
        masks.append((np.where(values > CLASSES, np.uint8(255), values), tags))
    sums, backwards = ConfounderSums(CLASSES, GRID), ConfounderSums(CLASSES, GRID)
    for mask, tags in masks:
        sums.add(mask, tags)
    for mask, tags in reversed(masks):
        backwards.add(mask, tags)
    for kind in ("tagged", "predicted"):
        found = sums.confounders(kind)
        assert np.array_equal(found.confounder, backwards.confounders(kind).confounder)
        for label in range(1, CLASSES + 1):
            np.testing.assert_allclose(found.confounder[label - 1], averaged(masks, label, kind == "tagged"), atol=1e-7)
        assert found.images == len(masks)


def test_files_of_other_classes_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    path, classes = tmp_path / "confounders.npz", Classes(["cat", "dog", "sofa"])
    FOUND.save(path, classes)
    read = Confounders.load(path, classes)
    assert np.array_equal(read.confounder, FOUND.confounder) and read.images == FOUND.images
    with pytest.raises(WeaksegError, match="sofa") as caught:
        Confounders.load(path, Classes(["cat", "dog", "bird"]))
    assert "bird" in str(caught.value)
    write_npz(path, {"confounder": FOUND.confounder})
    with pytest.raises(WeaksegError, match=r"confounders\.npz"):
        Confounders.load(path, classes)


def test_a_localiser_that_does_not_name_its_layer_is_refused() -> None:
    class Silent(CAM):
        class_layer = Localiser.class_layer

    cls = contextual(Silent)
    with pytest.raises(WeaksegError, match="class_layer"):
        cls(cls.Settings(backbone=BackboneSettings(name="small", output_stride=8, weights=None)), CLASSES)
