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
from weakseg.labels import VOID
from weakseg.methods.base import Segmenter, find_method, means
from weakseg.methods.deeplab import DeepLab, read_published
from weakseg.models.aspp import ASPP
from weakseg.models.deeplab_resnet import DeepLabResNet
from weakseg.models.norm import FixedBatchNorm2d
from weakseg.models.registry import BACKBONES, BackboneSettings
from weakseg.models.weights import read_state

CLASSES = 3


def segmenter(name: str = "small", weights: str | None = None, **settings: Any) -> DeepLab:
    torch.manual_seed(0)
    backbone = BackboneSettings(name=name, output_stride=8, weights=weights)
    network = DeepLab(DeepLab.Settings(backbone=backbone, **settings), CLASSES, load_weights=False)
    for classifier in network.aspp.classifiers():
        nn.init.normal_(classifier.weight, std=0.1)
        nn.init.normal_(classifier.bias)
    return network


def random_batch(size: tuple[int, int] = (40, 33), void: float = 0.2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES + 1, (2, *size), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < void] = VOID
    return {"image": torch.randn(2, 3, *size, generator=generator), "labels": labels}


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(1, 14), min_size=1, max_size=4))
def test_aspp_is_the_sum_of_dilated_convolutions(height: int, width: int, rates: list[int]) -> None:
    head = ASPP(5, 3, rates).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(2, 5, height, width, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([classifier(features) for classifier in head.classifiers()]).sum(0)
    result = head(features)
    torch.testing.assert_close(result, expected)

    inputs = [features, *head.parameters()]
    weights = torch.randn_like(result)
    gradients = torch.autograd.grad((result * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_is_found_by_its_name() -> None:
    assert find_method(Segmenter, "deeplab") is DeepLab


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (41, 33)])
def test_one_score_for_each_class_and_the_background(size: tuple[int, int], multi_scale: bool) -> None:
    logits = segmenter(multi_scale=multi_scale).logits({"image": torch.randn(2, 3, *size)})
    assert logits.shape == (2, 1 + CLASSES, -(-size[0] // 8), -(-size[1] // 8))


def test_loss_is_the_mean_over_pixels_with_a_label() -> None:
    network, batch = segmenter(), random_batch()
    log_probabilities = network.logits({"image": batch["image"]}).log_softmax(1)
    rows, columns = (2 * torch.arange(5) + 1) * 40 // 10, (2 * torch.arange(5) + 1) * 33 // 10
    terms = []
    for image in range(2):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                label = int(batch["labels"][image, row, column])
                if label != VOID:
                    terms.append(-log_probabilities[image, label, i, j])
    assert 0 < len(terms) < 50
    assert network.counts(batch) == {"segmentation": len(terms)}
    torch.testing.assert_close(network.losses(batch), {"segmentation": torch.stack(terms).sum()})


def test_loss_at_the_image() -> None:
    network, batch = segmenter(loss_at="image"), random_batch()
    scores = F.interpolate(network.logits({"image": batch["image"]}), (40, 33), mode="bilinear", align_corners=False)
    known = batch["labels"] != VOID
    expected = F.cross_entropy(scores.permute(0, 2, 3, 1)[known], batch["labels"][known].long())
    torch.testing.assert_close(means(network.losses(batch), network.counts(batch))["segmentation"], expected)


def test_four_losses_with_multiple_scales() -> None:
    network, batch = segmenter(multi_scale=True), random_batch()
    assert len(network.losses(batch)) == 4
    assert list(network.counts(batch)) == list(network.losses(batch))
    pyramid = network.pyramid(batch["image"])
    assert torch.equal(network.logits({"image": batch["image"]}), pyramid.maximum)
    assert (pyramid.maximum >= pyramid.full).all()
    assert (pyramid.maximum > pyramid.full).any()
    half = F.interpolate(batch["image"], (20, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pyramid.half, network.scores(half))


@pytest.mark.parametrize("multi_scale", [False, True])
def test_nothing_to_learn_from_void_alone(multi_scale: bool) -> None:
    network, batch = segmenter(multi_scale=multi_scale), random_batch(void=1.1)
    loss = sum(means(network.losses(batch), network.counts(batch)).values())
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in network.parameters())


def test_foreign_labels_are_an_error() -> None:
    batch = random_batch()
    batch["labels"][0, 3, 4], batch["labels"][1, 0, 0] = CLASSES + 1, 254
    with pytest.raises(WeaksegError, match=r"holds 4, 254, but the segmenter has the labels 0 … 3 and 255"):
        segmenter().losses(batch)


def test_learns_an_image_by_heart() -> None:
    network = segmenter(rates=(1, 2))
    batch = random_batch((32, 32))
    batch["labels"] = batch["labels"][:, :4, :4].repeat_interleave(8, 1).repeat_interleave(8, 2)
    optimiser = torch.optim.SGD(network.param_groups(0.01), lr=0.01, momentum=0.9)
    for _ in range(60):
        optimiser.zero_grad()
        loss = means(network.losses(batch), network.counts(batch))["segmentation"]
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
    known = batch["labels"][:, 4::8, 4::8] != VOID
    predicted = network.logits({"image": batch["image"]}).argmax(1)
    assert torch.equal(predicted[known], batch["labels"][:, 4::8, 4::8][known].long())


def test_groups_of_parameters() -> None:
    network = segmenter("resnet18", weights="imagenet")
    backbone, weights, biases = network.param_groups(0.5)
    assert (backbone["lr"], weights["lr"], biases["lr"]) == (0.5, 5, 10)
    assert biases["weight_decay"] == 0
    assert {tuple(p.shape) for p in biases["params"]} == {(1 + CLASSES,)}
    grouped = [p for group in (backbone, weights, biases) for p in group["params"]]
    learning = [p for p in network.parameters() if p.requires_grad]
    assert {id(p) for p in grouped} == {id(p) for p in learning}
    assert len(grouped) == len(learning)


@pytest.mark.parametrize(("weights", "learns"), [("imagenet", False), (None, True)])
def test_only_the_normalisation_of_a_random_backbone_learns(weights: str | None, learns: bool) -> None:
    network = segmenter("resnet18", weights=weights)
    norms = [module for module in network.modules() if isinstance(module, FixedBatchNorm2d)]
    assert norms
    assert all(norm.weight.requires_grad == learns and norm.bias.requires_grad == learns for norm in norms)


def test_training_mode_changes_nothing() -> None:
    network = segmenter("resnet18", weights="imagenet")
    images = torch.randn(1, 3, 33, 33)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(network.train().logits({"image": images}), network.eval().logits({"image": images}))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DeepLab, dict[str, Tensor], Path]:
    """A small network of the published kind, its state by the published names, and where to save that."""
    monkeypatch.setitem(BACKBONES, "reference", lambda stride, dilated: DeepLabResNet(stride, dilated, (1, 1, 1, 1)))
    network = segmenter("reference", weights="imagenet", multi_scale=True)
    state = {"base." + name.removeprefix("backbone."): tensor for name, tensor in network.state_dict().items()}
    return network, state, tmp_path / "deeplabv2_resnet101_msc-vocaug-20000.pth"


def test_published_checkpoint(published: tuple[DeepLab, dict[str, Tensor], Path]) -> None:
    network, state, path = published
    torch.save(state, path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    reading = read_published(read_state(path))
    assert reading.num_classes == CLASSES
    network.load_state_dict(dict(reading.state))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_backbone_starts_from_the_coco_initialisation(published: tuple[DeepLab, dict[str, Tensor], Path]) -> None:
    _, _, path = published
    torch.manual_seed(1)
    other = DeepLabResNet(blocks=(1, 1, 1, 1)).state_dict()
    torch.save({**other, "fc.weight": torch.zeros(91, 2048, 1, 1), "fc.bias": torch.zeros(91)}, path)
    settings = DeepLab.Settings(backbone=BackboneSettings(name="reference", output_stride=8, weights=str(path)))
    loaded = DeepLab(settings, CLASSES).backbone.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in loaded.items())


def test_checkpoint_of_something_else(published: tuple[DeepLab, dict[str, Tensor], Path]) -> None:
    _, state, _ = published
    with pytest.raises(WeaksegError, match=r"it has a tensor base\.fc\.weight"):
        read_published({**state, "base.fc.weight": torch.zeros(1)})
    del state["base.aspp.c0.bias"]
    with pytest.raises(WeaksegError, match=r"no classifier aspp\.c0"):
        read_published(state)


def test_the_published_backbone_rounds_sizes_up_after_the_pooling() -> None:
    backbone = DeepLabResNet(blocks=(1, 1, 1, 1))
    with torch.no_grad():
        for side, expected in [(321, 41), (240, 31), (160, 21), (513, 65)]:
            assert backbone(torch.zeros(1, 3, side, 1))[-1].shape == (1, 2048, expected, 1)


def test_the_published_backbone_expects_bgr_less_its_mean() -> None:
    backbone = DeepLabResNet(blocks=(1, 1, 1, 1))
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.float32)
    images = (rgb / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    received: list[Tensor] = []
    backbone.layer1.conv1.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    backbone(torch.from_numpy(images.astype(np.float32)).permute(2, 0, 1)[None])
    expected = rgb[..., ::-1] - np.array([104.008, 116.669, 122.675])
    np.testing.assert_allclose(received[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-4)
