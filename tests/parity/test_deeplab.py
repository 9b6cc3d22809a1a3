"""DeepLab v2 against its reference (deeplab.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reference import DEEPLAB, agrees, as_batch
from weakseg.data.transforms import Crop, crop, longer_side_size, mirror, resize_image, scaled_size
from weakseg.labels import VOID
from weakseg.methods.base import means
from weakseg.methods.deeplab import DeepLab, Pyramid
from weakseg.models.deeplab_resnet import DeepLabResNet
from weakseg.models.registry import BACKBONES, BackboneSettings
from weakseg.ops.resize import nearest_indices, resize_labels
from weakseg.ops.schedule import poly_factor

HEAD_FACTORS = [1, 10, 20]
VOC_CLASSES = 20  # where a label map does not tell
Vectors = dict[str, np.ndarray]


@pytest.fixture
def build(parity, monkeypatch):
    """Builds DeepLab with the reference's backbone of given blocks, filled by the reference's names."""

    def build(vectors: Vectors, num_classes: int, prefix: str = "base.", **settings: Any) -> DeepLab:
        blocks = tuple(vectors.get("n_blocks", np.array([3, 4, 23, 3])).tolist())
        monkeypatch.setitem(BACKBONES, "reference", lambda stride, dilated: DeepLabResNet(stride, dilated, blocks))
        backbone = BackboneSettings(name="reference", output_stride=8)
        network = DeepLab(DeepLab.Settings(backbone=backbone, **settings), num_classes, load_weights=False)
        fill(parity, network, vectors, prefix)
        return network.eval()

    return build


def reference_name(name: str, prefix: str = "base.") -> str:
    return prefix + name.removeprefix("backbone.")


def fill(parity: Any, network: nn.Module, vectors: Vectors, prefix: str) -> None:
    seed, gain = int(vectors["fill_seed"]), float(vectors.get("fill_gain", 0.7))
    state = {
        name: torch.from_numpy(
            np.asarray(parity.fill.fill(reference_name(name, prefix), tuple(tensor.shape), seed, gain))
        )
        for name, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)


def test_names_of_the_state(parity, monkeypatch):
    vectors = parity("deeplab/keys")
    monkeypatch.setitem(BACKBONES, "reference", DeepLabResNet)
    backbone = BackboneSettings(name="reference", output_stride=8)
    expected = reference_shapes(vectors, "v2msc")
    num_classes = expected["base.aspp.c0.weight"][0] - 1
    with torch.device("meta"):
        network = DeepLab(DeepLab.Settings(backbone=backbone, multi_scale=True), num_classes, load_weights=False)
    assert shapes(network, "base.") == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == vectors["v2msc_parameters"]

    # The initialisation from MS-COCO is the backbone with a classifier of its own, which `load_weights` drops.
    initial = reference_shapes(vectors, "v1")
    assert initial.pop("fc.weight") == (*initial.pop("fc.bias"), 2048, 1, 1)
    assert shapes(network.backbone, "") == initial


def shapes(network: nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    return {reference_name(name, prefix): tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def reference_shapes(vectors: Vectors, model: str) -> dict[str, tuple[int, ...]]:
    rows = zip(vectors[f"{model}_keys"].tolist(), vectors[f"{model}_shapes"].tolist(), strict=True)
    return {name: tuple(side for side in shape if side) for name, shape in rows}


@torch.no_grad()
def test_every_stage_of_resnet101(parity, build):
    vectors = parity("deeplab/v2_resnet101")
    network = build(vectors, vectors["logits"].shape[1] - 1, prefix="")
    images = as_batch(vectors["image"])
    stages = network.backbone(images)
    stem = network.backbone.layer1.pool(stages[0])
    scores = network.logits({"image": images})
    names = ["layer1", "layer2", "layer3", "layer4", "layer5", "aspp"]
    for name, features in zip(names, [stem, *stages[1:], scores], strict=True):
        assert features.shape == tuple(vectors[f"{name}_shape"])
        values = features.double()
        stats = torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()])
        agrees(stats, vectors[f"{name}_stats"], **DEEPLAB)
        agrees(features[0, :4, :3, :3], vectors[f"{name}_corner"], **DEEPLAB)
        agrees(values.mean((0, 2, 3))[:64], vectors[f"{name}_chan"], **DEEPLAB)
    agrees(scores, vectors["logits"], **DEEPLAB)
    agrees(scores, vectors["logits64"], **DEEPLAB)


@torch.no_grad()
def test_images_of_any_size(parity, build):
    vectors = parity("deeplab/v1_v2_small")
    cases = parity.cases(vectors, "image*")
    outputs = {name: vectors[f"{name}_logits{cases[0]}"].shape[1] for name in ("v1", "v2", "v2s")}
    v2 = build(vectors, outputs["v2"] - 1, prefix="")
    small_rates = build(vectors, outputs["v2s"] - 1, prefix="", rates=(3, 6, 9, 12))
    v1_head = nn.Sequential()
    v1_head.add_module("fc", nn.Conv2d(2048, outputs["v1"], 1))
    fill(parity, v1_head, vectors, prefix="")
    for k in cases:
        images = as_batch(vectors[f"image{k}"])
        agrees(v1_head(v2.backbone(images)[-1]), vectors[f"v1_logits{k}"], **DEEPLAB)
        agrees(v2.logits({"image": images}), vectors[f"v2_logits{k}"], **DEEPLAB)
        agrees(small_rates.logits({"image": images}), vectors[f"v2s_logits{k}"], **DEEPLAB)


@torch.no_grad()
def test_three_scales_and_their_maximum(parity, build):
    vectors = parity("deeplab/msc")
    cases = parity.cases(vectors, "images*")
    network = build(vectors, vectors[f"full{cases[0]}_size"].shape[1] - 1, multi_scale=True)
    for k in cases:
        images = as_batch(vectors[f"images{k}"])
        pyramid = network.pyramid(images)
        agrees(pyramid.full, vectors[f"full{k}_size"], **DEEPLAB)
        agrees(pyramid.half, vectors[f"half{k}_size"], **DEEPLAB)
        agrees(pyramid.three_quarters, vectors[f"threequarter{k}_size"], **DEEPLAB)
        logits = network.logits({"image": images})
        agrees(logits, vectors[f"eval{k}_size"], **DEEPLAB)
        large = nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        clear = vectors[f"margin{k}_size"] > 1e-3
        assert np.array_equal(large.argmax(1).numpy()[clear], vectors[f"labels{k}_size"][clear])


def test_loss_and_its_gradient(parity):
    vectors = parity("deeplab/loss")
    names = ["full", "half", "threequarter", "max"]
    scores = [torch.from_numpy(vectors[f"logits_{name}"]).requires_grad_() for name in names]
    network = StoredScores(Pyramid(*scores))
    labels = torch.from_numpy(vectors["labels"])
    batch = {"image": torch.zeros(len(labels), 3, *labels.shape[1:]), "labels": labels}
    losses = means(network.losses(batch), network.counts(batch))
    for name, loss in zip(names, losses.values(), strict=True):
        assert loss.item() == pytest.approx(float(vectors[f"loss_{name}"]), rel=1e-5)
    total = sum(losses.values()) / int(vectors["iter_size"])
    assert total.item() == pytest.approx(float(vectors["loss_total"]), rel=1e-5)
    total.backward()
    for name, tensor in zip(names, scores, strict=True):
        expected = vectors[f"grad_{name}"]
        assert np.abs(tensor.grad.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()

    batch["labels"] = torch.full_like(batch["labels"], VOID)
    assert sum(means(network.losses(batch), network.counts(batch)).values()).item() == 0


class StoredScores(DeepLab):
    """The losses of given scores, which have the sizes of the published backbone's."""

    def __init__(self, scores: Pyramid) -> None:
        backbone = BackboneSettings(name="small", output_stride=8, weights=None)
        super().__init__(DeepLab.Settings(backbone=backbone, multi_scale=True), scores.full.shape[1] - 1)
        self.backbone = DeepLabResNet(blocks=(1, 1, 1, 1))
        self.stored = scores

    def pyramid(self, images: Tensor) -> Pyramid:
        return self.stored


def test_train_step(parity, build):
    vectors = parity("deeplab/train_step")
    checkpoints = vectors["checkpoints"].tolist()
    num_classes = len(vectors[f"aspp_bias_after{checkpoints[0]}"]) - 1
    network = build(vectors, num_classes, multi_scale=True).train()
    parameters = {reference_name(name): parameter for name, parameter in network.named_parameters()}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    iter_max, iter_size, lr = int(vectors["iter_max"]), int(vectors["iter_size"]), float(vectors["lr"])
    optimiser = torch.optim.SGD(
        network.param_groups(lr),
        lr=lr,
        momentum=float(vectors["momentum"]),
        weight_decay=float(vectors["weight_decay"]),
    )
    names = {id(parameter): name for name, parameter in parameters.items()}
    for group, key in zip(optimiser.param_groups, ["group_1x", "group_10x", "group_20x"], strict=True):
        assert {names[id(parameter)] for parameter in group["params"]} == set(vectors[key].tolist())
    base_rates = [group["lr"] for group in optimiser.param_groups]
    batches = [
        {"image": as_batch(vectors[f"images{k}"]), "labels": torch.from_numpy(vectors[f"labels{k}"])}
        for k in range(iter_size)
    ]
    for update in range(1, len(vectors["losses"]) + 1):
        factor = poly_factor(update - 1, iter_max, 0.9, every=10)
        for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        assert np.abs([group["lr"] for group in optimiser.param_groups] - vectors["lrs"][update - 1]).max() <= 1e-12
        optimiser.zero_grad()
        accumulated = 0.0
        for batch in batches:
            loss = sum(means(network.losses(batch), network.counts(batch)).values()) / iter_size
            loss.backward()
            accumulated += loss.item()
        assert accumulated == pytest.approx(vectors["losses"][update - 1], rel=1e-4)
        optimiser.step()
        if update in checkpoints:
            row = checkpoints.index(update)
            for column, name in enumerate(vectors["watch"].tolist()):
                total, change = vectors["param_sum_and_delta_norm"][row, column]
                assert parameters[name].grad.norm().item() == pytest.approx(
                    vectors["grad_norms"][row, column], rel=1e-3
                )
                assert parameters[name].double().sum().item() == pytest.approx(total, rel=1e-4, abs=1e-4)
                assert (parameters[name] - start[name]).norm().item() == pytest.approx(change, rel=1e-3)
            deltas = {name: (parameters[name] - start[name]).detach().numpy() for name in parameters}
            bias = parameters["base.aspp.c1.bias"].detach().numpy()
            agrees(bias, vectors[f"aspp_bias_after{update}"], relative=1e-3)
            agrees(deltas["base.aspp.c0.weight"][:3, :5], vectors[f"aspp_weight_delta{update}"], relative=1e-3)
            stem = deltas["base.layer1.conv1.conv.weight"][:4]
            agrees(stem, vectors[f"stem_weight_delta{update}"], relative=1e-2)


def test_label_resize(parity):
    vectors = parity("deeplab/label_resize")
    for name, expected in vectors.items():
        kind, *numbers = name.split("_")
        if kind == "rows":
            source, target = map(int, numbers)
            assert np.array_equal(nearest_indices(source, target), expected)
        elif kind.startswith("resized"):
            labels = vectors[f"labels{kind.removeprefix('resized')}"]
            assert np.array_equal(resize_labels(labels, expected.shape[-2:]), expected)
        else:
            assert kind.startswith("labels")


def test_poly_lr(parity):
    # The vectors `lr_after_last*` are what the reference computes after its last update and never uses.
    vectors = parity("deeplab/poly_lr")
    for k in parity.cases(vectors, "args*"):
        lr, steps, every, power = vectors[f"args{k}"].tolist()
        used = [lr * poly_factor(i - 1, int(steps), power, int(every)) for i in vectors[f"iteration{k}"].tolist()]
        assert np.abs(np.outer(used, HEAD_FACTORS) - vectors[f"lr_used{k}"]).max() <= 1e-12


@pytest.mark.parametrize("variant", ["nobase", "base"])
@pytest.mark.cases("deeplab/augment", "rgb_*")
def test_augment(parity, case, variant):
    vectors = parity("deeplab/augment")
    scale, top, left, flip = vectors[f"drawn_{case}_{variant}"].tolist()
    image, labels = vectors[f"rgb_{case}"], vectors[f"lab_{case}"]
    mean, side = vectors["mean_bgr"].astype(np.float32), int(vectors["crop"])

    size = labels.shape
    if variant == "base":
        size = longer_side_size(size, int(vectors["base_size"]), "torch")
    size = scaled_size(size, scale, "torch")
    place = Crop(side, int(top), int(left), 0, 0, min(side, size[0]), min(side, size[1]))
    bgr = resize_image(image, size, "torch")[..., ::-1].astype(np.float32)
    image_view = (crop(bgr, place, mean) - mean).transpose(2, 0, 1)
    label_view = crop(resize_labels(labels, size), place, VOID)
    if flip < 0.5:
        image_view, label_view = mirror(image_view), mirror(label_view)

    assert np.array_equal(label_view, vectors[f"label_{case}_{variant}"])
    assert np.abs(image_view[:, ::3, ::3] - vectors[f"image_{case}_{variant}"]).max() <= 2e-3


@torch.no_grad()
@pytest.mark.cases("deeplab/demo", "rgb*")
def test_demo(parity, build, case):
    vectors = parity("deeplab/demo")
    network = build(vectors, VOC_CLASSES, multi_scale=True)
    images = as_batch(np.ascontiguousarray(vectors[f"resized_bgr{case}"][..., ::-1]))
    large = nn.functional.interpolate(
        network.logits({"image": images}), images.shape[-2:], mode="bilinear", align_corners=False
    )
    assert (large.argmax(1)[0].numpy() == vectors[f"labelmap{case}"]).mean() >= 0.995
