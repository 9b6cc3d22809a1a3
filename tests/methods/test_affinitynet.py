"""AffinityNet: its loss against the plain definition, its labels, and walks that stop where affinities end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.methods.affinitynet import (
    AffinityNet,
    affinity_labels,
    affinity_losses,
    pair_affinities,
    pairs,
    view_labels,
)
from weakseg.methods.base import means
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.background import with_background
from weakseg.ops.randomwalk import pair_offsets, reduced_radius

SMALL = BackboneSettings(name="small", output_stride=8, weights=None)


def network(**changes: object) -> AffinityNet:
    torch.manual_seed(0)
    settings = AffinityNet.Settings.model_validate({"backbone": SMALL.model_dump(), **changes})
    return AffinityNet(settings, num_classes=2)


def gathered(features: torch.Tensor, radius: int) -> torch.Tensor:
    """The affinities by their definition, every pair's features gathered."""
    height, width = features.shape[-2:]
    reach = radius - 1
    first = torch.arange(height * width).reshape(height, width)[: height - reach, reach : width - reach].flatten()
    second = torch.stack([first + dy * width + dx for dy, dx in pair_offsets(radius)])
    flat = features.flatten(2)
    return torch.exp(-(flat[:, :, second] - flat[:, :, first][:, :, None]).abs().mean(1))


@settings(max_examples=20)
@given(
    size=st.tuples(st.integers(5, 12), st.integers(9, 13)),
    radius=st.integers(2, 5),
    seed=st.integers(0, 99),
    channels_last=st.booleans(),
)
def test_affinities_and_their_gradient_are_those_of_gathered_pairs(
    size: tuple[int, int], radius: int, seed: int, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 6, *size, generator=generator)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    found, expected = pair_affinities(ours, radius), gathered(theirs, radius)
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn(found.shape, generator=generator)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_identical_features_have_a_gradient_of_zero() -> None:
    features = torch.ones(1, 4, 6, 9, requires_grad=True)
    affinities = pair_affinities(features, 5)
    assert (affinities == 1).all()
    affinities.sum().backward()
    assert (features.grad == 0).all()


@settings(max_examples=10)
@given(st.integers(0, 999))
def test_kinds_of_pairs_by_their_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, VOID], (6, 9)).astype(np.uint8)
    found = pairs(torch.as_tensor(labels)[None], radius=3)
    for row, (dy, dx) in enumerate(pair_offsets(3)):
        for column, (y, x) in enumerate((y, x) for y in range(4) for x in range(2, 7)):
            first, second = labels[y, x], labels[y + dy, x + dx]
            known = VOID not in (first, second)
            expected = (known and first == second == 0, known and first == second > 0, known and first != second)
            assert tuple(bool(kind[0, row, column]) for kind in found) == expected


def test_unknown_everywhere_costs_nothing() -> None:
    labels = torch.full((1, 6, 9), VOID, dtype=torch.uint8)
    features = torch.randn(1, 4, 6, 9, requires_grad=True)
    total = torch.stack(list(affinity_losses(pair_affinities(features, 3), pairs(labels, 3)).values())).sum()
    total.backward()
    assert total == 0
    assert (features.grad == 0).all()


def test_labels_of_every_case() -> None:
    background, thing, other = np.eye(3, dtype=np.float32)
    nothing = np.zeros(3, np.float32)
    low = np.stack([thing, background, background, nothing, thing, other], 1)[:, None]
    high = np.stack([thing, background, thing, nothing, background, thing], 1)[:, None]
    # surely a thing, surely background, neither, padding, both CRFs disagree: the weak background counts
    assert affinity_labels(low, high).tolist() == [[1, 0, VOID, VOID, 0, 2]]


def test_background_of_no_maps_is_certain() -> None:
    assert with_background(np.zeros((0, 2, 3), np.float32), 16).tolist() == [[[1.0] * 3] * 2]
    assert with_background(np.full((1, 1, 1), 0.5, np.float32), 2).ravel().tolist() == [0.25, 0.5]


def halves(height: int = 48, width: int = 96) -> tuple[np.ndarray, ActivationMaps]:
    """An image of two colours; the map has seen a part of the left one."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (220, 40, 30)
    maps = np.zeros((1, height // 4, width // 4), np.float32)
    maps[:, height // 16 :, : width // 16] = 1
    return image, ActivationMaps(np.array([2], np.int16), maps, (height, width), 4)


def test_evidence_leaves_out_what_the_two_crfs_doubt() -> None:
    image, maps = halves()
    evidence = AffinityNet.evidence(network().settings, image, maps)
    assert {name: array.dtype for name, array in evidence.items()} == {"low": np.float16, "high": np.float16}
    assert evidence["low"].shape == (2, *image.shape[:2])
    assert np.allclose(evidence["low"].sum(0), 1, atol=1e-2)
    strong, weak = (evidence[name][0].astype(np.float32) for name in ("low", "high"))
    assert strong.mean() >= weak.mean(), "a small alpha makes the stronger background"
    augmentation = Augmentation(crop=96, mirror=False)
    view = augmentation({"image": image, **evidence}, AffinityNet.fields, np.random.default_rng(0))
    learned = AffinityNet.prepare(network().settings, view)
    assert set(learned) == {"image", "labels"}
    assert learned["image"].shape == (3, 96, 96)
    assert learned["labels"].shape == (12, 12)
    assert set(np.unique(learned["labels"])) >= {0, VOID}


@pytest.mark.parametrize("largest", [0.2, 0.5, 1.0])
def test_evidence_suits_how_strong_maps_are(largest: float) -> None:
    image, maps = halves()
    halved = np.zeros((1, 12, 24), np.float32)
    halved[:, :, :12] = largest
    maps = replace(maps, maps=halved)
    evidence = AffinityNet.evidence(network(low_alpha="adaptive", high_alpha="adaptive").settings, image, maps)
    labels = view_labels(evidence["low"].astype(np.float32), evidence["high"].astype(np.float32), 8)
    assert (labels[:, :5] == 1).all()
    assert (labels[:, 7:] == 0).all()


def test_without_classes_all_is_background() -> None:
    image, maps = halves()
    empty = ActivationMaps(np.zeros(0, np.int16), np.zeros((0, 12, 24), np.float32), maps.size, 4)
    evidence = AffinityNet.evidence(network().settings, image, empty)
    assert (evidence["low"] == 1).all()
    walked = network().eval().refine(image, empty, AffinityNet.Options(), torch.device("cpu"))
    assert walked.labels.tolist() == [0]
    assert (walked.maps[:, :4, 1:-1] > 0.99).all()


def test_the_walk_fills_a_thing_and_stops_at_its_border() -> None:
    """A network that has learned nothing but colours: affinity 1 within a half, almost 0 between the halves."""

    class Colours(AffinityNet):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return 20 * torch.nn.functional.avg_pool2d(images, 8)

    image, maps = halves()
    net = Colours(network().settings, 2).eval()
    options = AffinityNet.Options(alpha=4, beta=8, log2_steps=8)
    walked = net.refine(image, maps, options, torch.device("cpu"))
    assert walked.labels.tolist() == [0, 2]
    assert walked.stride == 8
    before = maps.upsampled()[0]
    after = walked.upsampled()
    assert before[8:24, 24:44].mean() < 0.1
    assert after[1, 8:24, 24:44].mean() > 0.3, "spread over the half"
    assert after[1, :, 56:].max() < 1e-3, "and not over the other"


def test_weak_maps_keep_their_thing_with_an_adaptive_background() -> None:
    image, maps = halves()
    weak = ActivationMaps(maps.labels, maps.maps * np.float32(0.2), maps.size, maps.stride)
    labels = []
    for alpha in ("adaptive", 4):
        options = AffinityNet.Options(alpha=alpha, log2_steps=0, restart=0.9)
        labels.append(network().eval().refine(image, weak, options, torch.device("cpu")).upsampled().argmax(0))
    assert labels[0].any()
    assert not labels[0].all()
    assert not labels[1].any()


def test_small_images_keep_their_maps(tmp_path) -> None:
    image = np.full((20, 22, 3), 90, np.uint8)
    maps = ActivationMaps(np.array([1], np.int16), np.full((1, 5, 6), 0.5, np.float32), (20, 22), 4)
    walked = network().eval().refine(image, maps, AffinityNet.Options(alpha=1), torch.device("cpu"))
    assert reduced_radius((3, 3)) == 1
    assert np.allclose(walked.maps[1, :2, :2], 0.5)
    walked.save(tmp_path / "walked.npz")
    assert ActivationMaps.load(tmp_path / "walked.npz").has_background


def test_a_crop_without_pairs_is_refused() -> None:
    image, maps = halves()
    settings = network().settings
    evidence = AffinityNet.evidence(settings, image, maps)
    view = Augmentation(crop=32)({"image": image, **evidence}, AffinityNet.fields, np.random.default_rng(0))
    with pytest.raises(WeaksegError, match="A crop of 32 pixels is 4 cells wide at stride 8"):
        AffinityNet.prepare(settings, view)


@pytest.mark.parametrize("taps", [(3, 4, 5), (2, 3, 5), (4, 5, 5)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_any_backbone_and_any_stages(taps: tuple[int, ...], output_stride: int) -> None:
    net = network(taps=taps, backbone={**SMALL.model_dump(), "output_stride": output_stride}, group_norm=True)
    images = torch.randn(2, 3, 88, 81)
    stride = net.settings.stride
    size = (-(-88 // stride), -(-81 // stride))
    assert net.features(images).shape == (2, 448, *size)
    labels = torch.randint(0, 3, (2, *size), dtype=torch.uint8)
    torch.stack(list(net.losses({"image": images, "labels": labels}).values())).sum().backward()
    learned = {id(p) for group in net.param_groups(0.1) for p in group["params"]}
    assert learned == {id(p) for p in net.parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in net.param_groups(0.1)) == len(learned)


def test_it_learns_colours() -> None:
    """Two halves of an image become strangers within a few updates."""
    net = network()
    image, _ = halves(88, 96)
    images = torch.from_numpy(image.transpose(2, 0, 1) / 128.0 - 1).float()[None]
    labels = torch.zeros(1, 11, 12, dtype=torch.uint8)
    labels[..., :6] = 1
    batch = {"image": images, "labels": labels}
    optimiser = torch.optim.SGD(net.param_groups(0.02), lr=0.02, momentum=0.9)
    first = None
    for _ in range(12):
        optimiser.zero_grad()
        loss = torch.stack(list(means(net.losses(batch), net.counts(batch)).values())).sum()
        loss.backward()
        optimiser.step()
        first = first or loss.item()
    assert loss.item() < 0.6 * first


@torch.no_grad()
def test_all_pairs_are_the_lopsided_ones_and_those_near_the_borders() -> None:
    net = network().eval()
    image = torch.randn(3, 96, 104)
    usual, radius = net.affinities(image)
    all_pairs, _ = net.affinities(image, all_pairs=True)
    features = net.features(image[None])[0]
    assert usual.shape == all_pairs.shape == (34, 12, 13)
    assert torch.allclose(all_pairs[:, :-4, 4:-4], usual[:, :-4, 4:-4])
    for row, (dy, dx) in zip(all_pairs, pair_offsets(radius), strict=True):
        for y, x in ((0, 0), (11, 12), (5, 1), (9, 6)):
            if y + dy < 12 and 0 <= x + dx < 13:
                difference = (features[:, y, x] - features[:, y + dy, x + dx]).abs().mean()
                assert torch.allclose(row[y, x], torch.exp(-difference), atol=1e-6)
