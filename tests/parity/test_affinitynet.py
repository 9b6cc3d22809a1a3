"""AffinityNet against vectors of its reference implementations. Walk and pairs: test_random_walk.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from draws import Draws
from reference import agrees, as_batch, dense
from weakseg.data.transforms import Augmentation, View, random_crop
from weakseg.methods.affinitynet import (
    AffinityNet,
    affinity_losses,
    pair_affinities,
    pairs,
)
from weakseg.methods.base import checkpoints, means
from weakseg.models.caffe_input import CaffeInput
from weakseg.models.registry import BackboneSettings
from weakseg.models.weights import check_names_and_shapes
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import with_background
from weakseg.ops.crf_parameters import PARAMETERS
from weakseg.ops.crf_unary import unary_from_probabilities
from weakseg.ops.densecrf import dense_crf
from weakseg.ops.pairs import Pairs
from weakseg.ops.randomwalk import lopsided_affinities, reduced_radius

Vectors = dict[str, np.ndarray]
Network = Callable[[Vectors], AffinityNet]
CPU = torch.device("cpu")
NUM_CLASSES = 20  # of which the network knows nothing
RADIUS = 5  # of pairs, where a map has room for them


def reference_name(name: str) -> str:
    """The name that AffinityNet's program gives to one of our tensors."""
    layers = {"0": "f8", "1": "gn8"}
    parts = name.split(".")
    if parts[0] == "reductions":
        return f"{layers[parts[2]]}_{3 + int(parts[1])}.{parts[3]}"
    return name.removeprefix("backbone.").replace("combination", "f9")


def network(parity: Any, backbone: str, seed: int, gain: float) -> AffinityNet:
    settings = AffinityNet.Settings(
        backbone=BackboneSettings(name=backbone, output_stride=8, weights=None, frozen_stages=1),
        group_norm=backbone == "vgg16_affinity",
    )
    net = AffinityNet(settings, NUM_CLASSES)
    shapes = {reference_name(name): tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, seed, gain)
    net.load_state_dict({name: torch.from_numpy(np.asarray(state[reference_name(name)])) for name in net.state_dict()})
    return net.eval()


@pytest.fixture(scope="module")
def resnet38(parity: Any) -> Network:
    """`resnet38(vectors)` is the network of some vectors, which takes seconds to make."""
    filled = lru_cache(1)(partial(network, parity, "resnet38"))
    return lambda vectors: filled(int(vectors["fill_seed"]), float(vectors["fill_gain"]))


# Networks -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.cases("affinitynet/network", "image_*")
def test_resnet38(parity: Any, resnet38: Network, case: str) -> None:
    vectors = parity("affinitynet/network")
    net, images = resnet38(vectors), as_batch(vectors[f"image_{case}"])
    tapped = net.stage_features(images)
    assert tapped.shape == tuple(vectors[f"features_shape_{case}"])
    agrees(tapped[:, ::7], vectors[f"features_{case}"], relative=1e-4)
    features = net.features(images)
    size = features.shape[-2:]
    for release in parity.cases(vectors, f"aff_{case}_*"):
        radius = RADIUS if release == "psa" else reduced_radius(size)
        affinities = pair_affinities(features, radius)
        agrees(affinities, vectors[f"aff_{case}_{release}"], absolute=1e-5)
        placed = lopsided_affinities(affinities[0], size, radius)
        agrees(dense(placed, radius), vectors[f"dense_{case}_{release}"], absolute=1e-5)


@torch.no_grad()
def test_vgg16(parity: Any) -> None:
    vectors = parity("affinitynet/vgg16")
    net = network(parity, "vgg16_affinity", int(vectors["fill_seed"]), float(vectors["fill_gain"]))
    caffe = CaffeInput()
    wanted = caffe(as_batch(vectors["image"])) / int(vectors["input_divisor"])
    images = ((wanted - caffe.shift) / caffe.scale).flip(1)
    agrees(pair_affinities(net.features(images), RADIUS), vectors["aff"], relative=1e-4)


def reference_shapes(vectors: Vectors, name: str) -> dict[str, tuple[int, ...]]:
    rows = zip(vectors[f"{name}_keys"].tolist(), vectors[f"{name}_shapes"].tolist(), strict=True)
    return {key: tuple(side for side in shape if side) for key, shape in rows}


@pytest.mark.parametrize(
    ("name", "file", "network"),
    [
        ("affinitynet-resnet38", "resnet38/state_dict", "resnet38_aff"),
        ("affinitynet-vgg16", "affinitynet/vgg16_state_dict", "vgg16_aff"),
    ],
)
def test_published_checkpoints(parity: Any, name: str, file: str, network: str) -> None:
    (checkpoint,) = [item for _, _, item in checkpoints() if item.name == name]
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in reference_shapes(parity(file), network).items()}
        assert [item.name for _, _, item in checkpoints() if item.matches(published)] == [name]
        reading = checkpoint.read(published)
        net = AffinityNet(AffinityNet.Settings.model_validate(reading.settings.model_dump()), NUM_CLASSES)
    assert check_names_and_shapes(reading.state, net.state_dict()) == ""


def test_vgg16_state_dict(parity: Any) -> None:
    vectors = parity("affinitynet/vgg16_state_dict")
    settings = AffinityNet.Settings(
        backbone=BackboneSettings(name="vgg16_affinity", output_stride=8, weights=None, frozen_stages=1),
        group_norm=True,
    )
    with torch.device("meta"):
        net = AffinityNet(settings, NUM_CLASSES)
    found = {reference_name(name): tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert found == reference_shapes(vectors, "vgg16_aff")
    ours = {reference_name(name): parameter for name, parameter in net.named_parameters()}
    groups = {id(p): number for number, group in enumerate(net.param_groups(0.1)) for p in group["params"]}
    columns = (vectors[f"vgg16_aff_{column}"].tolist() for column in ("params", "group", "trainable"))
    for name, group, trainable in zip(*columns, strict=True):
        assert ours[name].requires_grad == trainable
        assert groups.get(id(ours[name])) == (group if trainable else None)


@pytest.fixture
def learning(parity: Any, resnet38: Network) -> Iterator[tuple[AffinityNet, dict[str, torch.Tensor]]]:
    """The network in training, without dropout, and its weights. It gets them back: filling them takes much longer."""
    net = resnet38(parity("affinitynet/train_step"))
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.requires_grad}
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout2d):
            module.eval()
    yield net, before
    net.zero_grad()
    net.load_state_dict(before, strict=False)
    net.eval()


def test_train_step(parity: Any, learning: tuple[AffinityNet, dict[str, torch.Tensor]]) -> None:
    vectors, (net, before) = parity("affinitynet/train_step"), learning
    batch = {"image": as_batch(vectors["images"]), "labels": torch.as_tensor(vectors["labels"])}
    counts = net.counts(batch)
    agrees([int(count) for count in counts.values()], vectors["counts"], absolute=1e-3)
    optimiser = torch.optim.SGD(net.param_groups(0.01), momentum=5e-4, weight_decay=5e-4)
    assert [group["lr"] for group in optimiser.param_groups] == [0.01, 0.02, 0.1, 0.2]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [5e-4, 0, 5e-4, 0]
    terms = means(net.losses(batch), counts)
    total = torch.stack(list(terms.values())).sum()
    agrees([4 * terms["background"].item(), 4 * terms["foreground"].item(), 2 * terms["different"].item(),
            total.item()], vectors["values"], absolute=1e-4)  # fmt: skip
    total.backward()
    optimiser.step()
    after = {reference_name(name): (p, before[name]) for name, p in net.named_parameters() if p.grad is not None}
    assert set(after) == set(vectors["step_names"].tolist())
    columns = (vectors[f"step_{column}"] for column in ("names", "grad_norm", "delta", "head"))
    for name, norm, (delta_sum, delta_norm), head in zip(*columns, strict=True):
        parameter, start = after[str(name)]
        assert parameter.grad is not None
        assert parameter.grad.norm(dtype=torch.float64).item() == pytest.approx(norm, rel=1e-3)
        delta = parameter.detach() - start
        assert delta.norm(dtype=torch.float64).item() == pytest.approx(delta_norm, rel=1e-3)
        sum_tolerance = 1e-3 * delta_norm * parameter.numel() ** 0.5
        assert delta.sum(dtype=torch.float64).item() == pytest.approx(delta_sum, abs=sum_tolerance)
        agrees(parameter.contiguous().flatten()[:4], head, relative=1e-4)


# The walk of a whole image --------------------------------------------------------------------------------------------


def given_maps(vectors: Vectors) -> ActivationMaps:
    maps = vectors["cam_times_4096"].astype(np.float32) / 4096
    size = (maps.shape[1], maps.shape[2])
    return ActivationMaps((vectors["cam_keys"] + 1).astype(np.int16), maps, size, stride=1)


@pytest.mark.cases("affinitynet/random_walk", "*_walked")
def test_walk_of_an_image(parity: Any, resnet38: Network, case: str) -> None:
    vectors = parity("affinitynet/random_walk")
    alpha, beta, log2_steps = vectors[f"{case}_options"].tolist()
    options = AffinityNet.Options(alpha=alpha, beta=beta, log2_steps=int(log2_steps))
    walked = resnet38(vectors).refine(vectors["image"], given_maps(vectors), options, CPU)
    assert walked.labels.tolist() == [0, *(vectors["cam_keys"] + 1)]
    agrees(walked.maps.reshape(len(walked.labels), -1), vectors[f"{case}_walked"], absolute=1e-4)
    scores = walked.upsampled()
    labels = walked.labels[scores.argmax(0)]
    best, second = np.sort(scores, 0)[:-3:-1]
    assert (labels != vectors[f"{case}_label"]).mean() <= 1e-3
    assert (best - second)[labels != vectors[f"{case}_label"]].max(initial=0) < 1e-4


@torch.no_grad()
def test_the_affinities_and_the_start_of_the_walk(parity: Any, resnet38: Network) -> None:
    vectors = parity("affinitynet/random_walk")
    height, width = vectors["image"].shape[:2]
    bottom, right = vectors["padded"] - (height, width)
    image = F.pad(as_batch(vectors["image"])[0], (0, right, 0, bottom))
    affinities, radius = resnet38(vectors).affinities(image)
    agrees(dense(affinities**8, radius), vectors["aff_beta"], absolute=1e-4)
    for run in parity.cases(vectors, "*_cam_low"):
        alpha, _, _ = vectors[f"{run}_options"].tolist()
        scores = torch.from_numpy(with_background(given_maps(vectors).upsampled(), alpha))
        start = F.avg_pool2d(F.pad(scores, (0, right, 0, bottom)), 8)
        agrees(start.flatten(1), vectors[f"{run}_cam_low"], absolute=1e-6)


def test_crf_after_the_walk(parity: Any, resnet38: Network) -> None:
    vectors = parity("affinitynet/random_walk")
    alpha, beta, log2_steps = vectors["crf_options"].tolist()
    options = AffinityNet.Options(alpha=alpha, beta=beta, log2_steps=int(log2_steps))
    walked = resnet38(vectors).refine(vectors["image"], given_maps(vectors), options, CPU)
    scores = unary_from_probabilities(walked.upsampled())
    marginals = dense_crf(vectors["image"], scores, PARAMETERS["affinitynet_walk"])
    assert (walked.labels[marginals.argmax(0)] != vectors["crf_label"]).mean() <= 0.01


# Labels and losses ----------------------------------------------------------------------------------------------------


def unpacked(vectors: Vectors, kind: str) -> np.ndarray:
    shape = vectors["item_pairs_shape"]
    return np.unpackbits(vectors[f"item_{kind}"], count=int(shape.prod())).reshape(shape)


def test_kinds_of_pairs(parity: Any) -> None:
    vectors = parity("affinitynet/labels")
    found = pairs(torch.as_tensor(vectors["label"])[None], RADIUS)
    for kind, chosen in zip(("bg", "fg", "neg"), found, strict=True):
        np.testing.assert_array_equal(chosen[0], vectors[f"label_{kind}"])


def test_a_training_sample(parity: Any) -> None:
    vectors = parity("affinitynet/labels")
    side = int(vectors["item_size"])
    *places, mirrored = vectors["item_draws"].tolist()
    draws: Any = Draws(places)
    size = vectors["item_image"].shape[:2]
    view = View(size, random_crop(size, side, "irnet", draws), bool(mirrored))
    assert draws.bounds == vectors["item_bounds"].tolist()[:2]

    augmentation = Augmentation(crop=side, padding="black")
    image = augmentation.image(vectors["item_image"], view)
    assert np.abs(image[:, ::4, ::4] - vectors["item_x"]).max() <= 1e-6
    stats = image.mean(dtype=np.float64), image.std(dtype=np.float64), np.abs(image).max()
    assert np.abs(np.array(stats) - vectors["item_x_stats"]).max() <= 1e-6

    evidence = {name: vectors[f"item_{name}"].astype(np.float32) / np.float32(65535) for name in ("low", "high")}
    views = {name: augmentation.follow(field, evidence[name], view) for name, field in AffinityNet.fields.items()}
    labels = AffinityNet.prepare(AffinityNet.Settings(), {"image": image, **views})["labels"]
    np.testing.assert_array_equal(labels, vectors["item_label"])
    for kind, chosen in zip(("bg", "fg", "neg"), pairs(torch.as_tensor(labels)[None], RADIUS), strict=True):
        np.testing.assert_array_equal(chosen[0], unpacked(vectors, kind))


@pytest.mark.cases("affinitynet/losses", "*_aff")
def test_losses(parity: Any, case: str) -> None:
    vectors = parity("affinitynet/losses")
    affinities = torch.as_tensor(vectors[f"{case}_aff"]).requires_grad_()
    kind = torch.as_tensor(vectors[f"{case}_kind"])
    kinds = Pairs(kind == 0, kind == 1, kind == 2)
    terms = means(affinity_losses(affinities, kinds), {name: chosen.sum() for name, chosen in kinds._asdict().items()})
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    weights = {"background": 4, "foreground": 4, "different": 2}
    found = [*(terms[name].item() * weight for name, weight in weights.items()), total.item()]
    assert np.abs(np.array(found) - vectors[f"{case}_values"]).max() <= 1e-5
    assert affinities.grad is not None
    expected = vectors[f"{case}_grad"]
    assert np.abs(affinities.grad.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
