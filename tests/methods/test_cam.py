from __future__ import annotations

import pytest
import torch
from torch import Tensor

from weakseg.methods.base import Localiser, find_method
from weakseg.methods.cam import CAM
from weakseg.models.registry import BackboneSettings
from weakseg.settings import validate

NAMES = ["resnet18", "mobilenet_v2", "small"]


def build(name: str = "resnet18", frozen_stages: int = 0, classes: int = 3) -> CAM:
    torch.manual_seed(0)
    backbone = BackboneSettings(name=name, weights=None, frozen_stages=frozen_stages)
    return CAM(CAM.Settings(backbone=backbone), classes)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 80, generator=torch.Generator().manual_seed(1))


def test_is_found_by_its_name() -> None:
    assert find_method(Localiser, "cam") is CAM


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_the_unclipped_map_is_the_score(name: str) -> None:
    network = build(name).eval()
    with torch.no_grad():
        features = network.backbone(images())[-1]
        scores, maps = network.scores({"image": images()}), network.activation_maps({"image": images()})
    raw = torch.einsum("cd,ndhw->nchw", network.classifier.weight[:, :, 0, 0].detach(), features)
    torch.testing.assert_close(scores, raw.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, raw.clamp(min=0), rtol=1e-4, atol=1e-5)
    assert maps.shape == (2, 3, 4, 5)


def test_loss_by_hand() -> None:
    network = build()
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    losses = network.losses({"image": images(), "tags": tags})
    probability = network.scores({"image": images()}).double().sigmoid()
    expected = -(tags * probability.log() + (1 - tags) * (1 - probability).log()).mean()
    assert list(losses) == ["classification"]
    assert losses["classification"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_keeps_full_precision_under_bf16() -> None:
    network, tags = build("small").eval(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = network.losses({"image": images(), "tags": tags})["classification"]
        probability = network.scores({"image": images()}).double().sigmoid()
    expected = -(tags * probability.log() + (1 - tags) * (1 - probability).log()).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_param_groups_leave_out_what_is_frozen() -> None:
    network = build(frozen_stages=3)
    backbone, head = network.param_groups(lr=0.1)
    assert (backbone["lr"], head["lr"]) == (0.1, pytest.approx(1.0))
    assert [id(p) for p in head["params"]] == [id(network.classifier.weight)]
    learning = {name for name, p in network.backbone.named_parameters() if any(p is q for q in backbone["params"])}
    assert {name.split(".")[0] for name in learning} == {"layer3", "layer4"}


def test_one_step_moves_only_what_learns() -> None:
    network = build(frozen_stages=4).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.SGD(network.param_groups(lr=0.1), lr=0.1, weight_decay=1e-4)
    sum(network.losses({"image": images(), "tags": torch.eye(3)[:2]}).values(), torch.zeros(())).backward()
    optimiser.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert "classifier.weight" in moved
    assert {name.split(".")[1] for name in moved - {"classifier.weight"}} == {"layer4"}


@pytest.mark.parametrize("name", ["mobilenet_v2"])
def test_learns_to_tell_left_from_right_and_shows_where(name: str) -> None:
    """Class 1 is a bright square in the left half, class 2 a dark one in the right half."""
    generator = torch.Generator().manual_seed(0)
    batch = 0.3 * torch.randn(8, 3, 64, 64, generator=generator)
    tags = torch.eye(2).repeat(4, 1)
    for index in range(8):
        left = index % 2 == 0
        batch[index, :, 8:40, (4 if left else 36) : (28 if left else 60)] += 2 if left else -2
    network = build(name, classes=2).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(15):
        (loss,) = network.losses({"image": batch, "tags": tags}).values()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        maps = network.eval().activation_maps({"image": batch})
        assert ((network.scores({"image": batch}) > 0) == (tags > 0)).all()
    half = maps.shape[3] // 2
    for index, image_maps in enumerate(maps):
        own = image_maps[index % 2]
        near, far = (own[:, :half], own[:, half:]) if index % 2 == 0 else (own[:, half:], own[:, :half])
        assert near.sum() > far.sum()


def test_without_pretrained_weights_no_file_is_needed() -> None:
    settings = validate(CAM.Settings, {"backbone": {"name": "resnet18", "weights": "/nowhere.pth"}}, "cam")
    network = CAM(settings, 4, load_weights=False)
    assert network.classifier.weight.shape == (4, 512, 1, 1)


def test_defaults_are_those_of_irnet() -> None:
    settings = CAM.Settings()
    assert settings.head_lr_factor == 10
    assert settings.backbone == BackboneSettings(
        name="resnet50", output_stride=16, dilated=False, weights="imagenet", frozen_stages=3
    )


def test_the_form_of_affinitynet() -> None:
    torch.manual_seed(0)
    backbone = BackboneSettings(name="small", output_stride=8, weights=None)
    network = CAM(CAM.Settings(backbone=backbone, form="affinitynet", map_power=0.5), 40)
    plain = CAM(CAM.Settings(backbone=backbone), 40)
    plain.load_state_dict(network.state_dict())

    # Xavier: uniform up to √(6 / (inputs + outputs)).
    limit = (6 / (128 + 40)) ** 0.5
    assert 0.97 * limit < network.classifier.weight.abs().max() <= limit

    one, other = network.train().scores({"image": images()}), network.scores({"image": images()})
    assert not torch.equal(one, other)
    torch.testing.assert_close(network.eval().scores({"image": images()}), plain.scores({"image": images()}))
    torch.testing.assert_close(
        network.activation_maps({"image": images()}).square(), plain.activation_maps({"image": images()})
    )

    norm_shift, norm_scale = network.backbone.norm.bias, network.backbone.norm.weight
    rates = {
        id(parameter): (group["lr"], group.get("weight_decay"))
        for group in network.param_groups(1.0)
        for parameter in group["params"]
    }
    assert len(rates) == len(list(network.parameters()))
    assert rates[id(norm_scale)] == (1.0, None)
    assert rates[id(norm_shift)] == (2.0, 0.0)
    assert rates[id(network.classifier.weight)] == (10.0, None)
