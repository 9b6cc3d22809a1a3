"""DeepLab v1 on small backbones: what learns, statistics of the batch, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.methods.base import Segmenter, find_method, means
from weakseg.methods.deeplab_v1 import DeepLabV1
from weakseg.models.norm import FixedBatchNorm2d
from weakseg.models.registry import BackboneSettings

CLASSES = 3


def segmenter(name: str = "resnet18", **settings: Any) -> DeepLabV1:
    torch.manual_seed(0)
    backbone = BackboneSettings(name=name, output_stride=8, weights=None)
    return DeepLabV1(DeepLabV1.Settings(backbone=backbone, **settings), CLASSES)


def batch(count: int = 2, height: int = 33, width: int = 41) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randn(count, 3, height, width, generator=generator),
        "labels": torch.randint(0, 1 + CLASSES, (count, height, width), generator=generator).byte(),
    }


def test_is_found_by_its_name() -> None:
    assert find_method(Segmenter, "deeplab_v1") is DeepLabV1


@torch.no_grad()
@pytest.mark.parametrize("head", ["wide", "narrow"])
def test_logits_have_the_size_of_the_image_and_meet_the_scores_at_the_corners(head: str) -> None:
    network = segmenter(head=head).eval()
    images = batch()["image"]
    scores, logits = network.scores(images), network.logits({"image": images})
    assert logits.shape == (2, 1 + CLASSES, 33, 41)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(logits[..., row, column], scores[..., row, column])


@pytest.mark.parametrize("place", ["image", "output"])
def test_loss_by_hand(place: str) -> None:
    network = segmenter("small", head="narrow", loss_at=place).eval()
    given = batch(1, 24, 24)
    given["labels"][:, :9] = VOID
    (loss,) = means(network.losses(given), network.counts(given)).values()
    if place == "image":
        scores, labels = network.logits({"image": given["image"]}), given["labels"]
    else:
        scores, labels = network.scores(given["image"]), given["labels"][:, 4::8, 4::8]
    logs = scores.double().log_softmax(1)
    kept = [
        -logs[0, int(label), row, column]
        for (row, column), label in zip(
            [(r, c) for r in range(labels.shape[1]) for c in range(labels.shape[2])], labels.flatten(), strict=True
        )
        if label != VOID
    ]
    assert loss.item() == pytest.approx((sum(kept) / len(kept)).item(), rel=1e-5)  # type: ignore[union-attr]


def test_statistics_of_the_batch_are_used_and_learned() -> None:
    network = segmenter(norm_momentum=0.5)
    assert not any(isinstance(module, FixedBatchNorm2d) for module in network.modules())
    norm = network.backbone.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    outputs: list[Tensor] = []
    norm.register_forward_hook(lambda _, inputs, output: outputs.extend([inputs[0], output.clone()]))
    network.train().losses(batch())
    given, normalised = outputs
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(norm.running_mean, 0.5 * given.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_counting_learns_no_statistics() -> None:
    network = segmenter(norm_momentum=0.5, loss_at="output").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert network.counts(batch()) == {"segmentation": 2 * 5 * 6}  # stride 8, nothing void
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_fixed_statistics_stay() -> None:
    network = segmenter(norm="fixed")
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    network.train().losses(batch())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.named_buffers())


@pytest.mark.parametrize("norm", ["batch", "fixed"])
def test_scales_and_shifts_never_learn(norm: str) -> None:
    network = segmenter(norm=norm)
    in_groups = {id(p) for group in network.param_groups(0.1) for p in group["params"]}
    norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert norms
    assert in_groups == {id(p) for p in network.parameters()} - norms
    rates = {id(p): group["lr"] for group in network.param_groups(0.1) for p in group["params"]}
    assert rates[id(network.cls_conv.bias)] == pytest.approx(2.0)
    assert rates[id(network.conv_fov.weight)] == pytest.approx(1.0)


def test_one_cell_has_no_statistics() -> None:
    given = batch(1, 8, 8)
    with pytest.raises(WeaksegError, match=r"no statistics .*train\.batch_size.*model\.norm=fixed"):
        segmenter().train().losses(given)
    segmenter(norm="fixed").train().losses(given)
    segmenter().eval().losses(given)
    segmenter().train().losses(batch(2, 8, 8))


def test_labels_of_another_list_of_classes() -> None:
    given = batch()
    given["labels"][0, 0, 0] = CLASSES + 1
    with pytest.raises(WeaksegError, match=f"A label map holds {CLASSES + 1}"):
        segmenter("small").losses(given)


def test_learns_to_tell_two_colours() -> None:
    network = segmenter("small", head="narrow", loss_at="output").train()
    labels = torch.zeros(4, 16, 16, dtype=torch.uint8)
    labels[:, :, 8:] = 2
    given = {"image": labels[:, None].float().expand(-1, 3, -1, -1) - 1, "labels": labels}
    optimiser = torch.optim.SGD(network.param_groups(0.02), momentum=0.9)
    losses = []
    for _ in range(30):
        (loss,) = means(network.losses(given), network.counts(given)).values()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
