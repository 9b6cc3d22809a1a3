"""IRNet: its losses against every pair written out, its branches on every kind of backbone, images of all kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.methods.base import means
from weakseg.methods.irnet import IRNet, pair_losses, warn_of_larger_images
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import ActivationMaps, resize_image
from weakseg.ops.instances import centroids, clusters
from weakseg.ops.pairsums import EPSILON
from weakseg.ops.randomwalk import boundary_walk, pair_offsets, path

CPU = torch.device("cpu")


def small(**changes: object) -> IRNet:
    torch.manual_seed(0)
    backbone = BackboneSettings(name="small", output_stride=8, weights=None)
    return IRNet(IRNet.Settings.model_validate({"backbone": backbone, "canvas": 0, **changes}), 2)


def maps_of(labels: list[int], size: tuple[int, int], value: float = 0.5, stride: int = 4) -> ActivationMaps:
    height, width = (-(-side // stride) for side in size)
    return ActivationMaps(np.array(labels, np.int16), np.full((len(labels), height, width), value), size, stride)


# The losses -----------------------------------------------------------------------------------------------------------


def written_out(boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> list[Tensor]:
    """The five terms from a list of all pairs."""
    images, height, width = boundary.shape
    reach = radius - 1
    terms: dict[str, list[Tensor]] = {name: [] for name in ("background", "things", "different", "still", "moved")}
    for n in range(images):
        for y in range(height - reach):
            for x in range(reach, width - reach):
                for dy, dx in pair_offsets(radius):
                    first, second = int(labels[n, y, x]), int(labels[n, y + dy, x + dx])
                    if 255 in (first, second):
                        continue
                    affinity = 1 - torch.stack([boundary[n, y + v, x + u] for v, u in path(dy, dx)]).max()
                    if first != second:
                        terms["different"].append(-torch.log(1 + EPSILON - affinity))
                        continue
                    kind, moved = ("things", "moved") if first else ("background", "still")
                    path_taken = field.new_tensor((dy, dx) if first else (0, 0))
                    terms[kind].append(-torch.log(affinity + EPSILON))
                    terms[moved].append((field[n, :, y, x] - field[n, :, y + dy, x + dx] - path_taken).abs().mean())
    mean = {name: torch.stack(values).mean() if values else boundary.sum() * 0 for name, values in terms.items()}
    boundaries = [mean["background"] / 4, mean["things"] / 4, mean["different"] / 2]
    return [*boundaries, mean["moved"] / 2, mean["still"] / 2]


def losses_by_offsets(boundary: Tensor, field: Tensor, labels: Tensor, radius: int) -> list[Tensor]:
    """The same by the code under test."""
    counts = small(radius=radius).counts({"labels": labels})
    return list(means(pair_losses(boundary, field, labels, radius), counts).values())


@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 9), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_losses_and_gradients_are_those_of_all_pairs(
    images: int, height: int, width: int, radius: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[
        torch.randint(4, (images, height, width), generator=generator)
    ]
    found, expected = [], []
    for results, losses in ((found, losses_by_offsets), (expected, written_out)):
        generator.manual_seed(seed)
        boundary = torch.rand(images, height, width, generator=generator).mul(0.98).add(0.01).requires_grad_()
        field = torch.randn(images, 2, height, width, generator=generator).requires_grad_()
        terms = losses(boundary, field, labels, radius)
        # Different weights show whether each term has its own gradient.
        sum(weight * term for weight, term in zip((1.0, 2.0, 3.0, 5.0, 7.0), terms, strict=True)).backward()
        zeros = torch.zeros_like(field)
        gradients = boundary.grad, zeros if field.grad is None else field.grad
        results += [torch.stack([term.detach() for term in terms]), *gradients]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_map_without_pairs_teaches_nothing() -> None:
    network = small()
    terms = network.losses({"image": torch.randn(2, 3, 32, 32), "labels": torch.ones(2, 8, 8, dtype=torch.uint8)})
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert total.item() == 0
    assert all(not parameter.grad.any() for parameter in network.boundary.parameters() if parameter.grad is not None)


def test_boundaries_are_learned_between_labels() -> None:
    network = small(radius=3).train()
    optimiser = torch.optim.SGD(network.param_groups(0.1))
    image = torch.full((1, 3, 48, 48), -1.0)
    image[..., 20:] = 1.0
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    labels[..., 5:] = 1
    batch = {"image": image, "labels": labels}
    for _ in range(30):
        optimiser.zero_grad()
        torch.stack(list(means(network.losses(batch), network.counts(batch)).values())).sum().backward()
        optimiser.step()
    with torch.no_grad():
        boundary = torch.sigmoid(network.boundary(network.features(image)))[0].mean(0)
    edge, elsewhere = boundary[3:7].max(), boundary[[0, 1, 9, 10, 11]].max()
    assert edge > 2 * elsewhere


def test_the_backbone_never_learns() -> None:
    network = small(radius=3).train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimiser = torch.optim.SGD(network.param_groups(0.1), weight_decay=0.1)
    batch = {"image": torch.randn(1, 3, 48, 48), "labels": torch.randint(2, (1, 12, 12), dtype=torch.uint8)}
    torch.stack(list(means(network.losses(batch), network.counts(batch)).values())).sum().backward()
    optimiser.step()
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    learning = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    assert learning == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}


# The branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("resnet18", 32), ("mobilenet_v2", 16), ("small", 8)])
@pytest.mark.parametrize("size", [(33, 50), (64, 47), (1, 1)])
def test_branches_fit_every_backbone_and_size(name: str, stride: int, size: tuple[int, int]) -> None:
    backbone = BackboneSettings.model_validate({"name": name, "output_stride": stride, "weights": None})
    network = IRNet(IRNet.Settings(backbone=backbone, canvas=0), 3, load_weights=False).eval()
    with torch.no_grad():
        features = network.features(torch.randn(2, 3, *size))
        boundary, field = network.boundary(features), network.displacement(features)
    cells = tuple(-(-side // 4) for side in size)
    assert boundary.shape == (2, *cells)
    assert field.shape == (2, 2, *cells)


def test_images_larger_than_the_canvas_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    network = small(canvas=48).eval()
    image = np.zeros((50, 40, 3), np.uint8)
    for _ in range(2):
        boundary, field = network.relations(image, CPU)
        assert boundary.shape == (13, 10)
        assert field.shape == (2, 13, 10)
    assert [record.message for record in caplog.records if "larger than the canvas of 48" in record.message]
    assert len(caplog.records) == 1


def test_the_mean_displacement_is_subtracted_in_evaluation_only() -> None:
    network = small().eval()
    images = [np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8) for k in range(3)]
    network.conclude(({"image": image} for image in images), CPU)
    once = network.displacement.mean.clone()
    network.conclude(({"image": image} for image in images), CPU)
    assert torch.equal(network.displacement.mean, once), "an earlier mean must not count"
    means = [
        network.displacement(network.features(network._on_canvas([image], CPU))).mean((0, 2, 3)) for image in images
    ]
    torch.testing.assert_close(torch.stack(means).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    network.conclude(iter([]), CPU)
    assert torch.equal(network.displacement.mean, torch.zeros(2))


# What is learned, and the walk ----------------------------------------------------------------------------------------


def test_an_image_without_tags_is_all_background() -> None:
    image, maps = np.zeros((20, 30, 3), np.uint8), maps_of([], (20, 30))
    network = small().eval()
    assert not IRNet.evidence(network.settings, image, maps)["labels"].any()
    walked = network.refine(image, maps, IRNet.Options(), CPU)
    assert walked.maps.shape == (0, 5, 8)


def test_labels_are_things_background_and_void() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 20:40], image[:, 40:] = (250, 30, 30), (30, 30, 250)
    maps = maps_of([2], (40, 60), 0.0, stride=1)
    maps.maps[:, :, 20:40], maps.maps[:, :, 40:] = 0.15, 0.9
    labels = IRNet.evidence(small().settings, image, maps)["labels"]
    assert labels.dtype == np.uint8
    assert (labels[5:-5, 2:16] == 0).all()
    assert (labels[5:-5, 24:36] == 255).all()
    assert (labels[5:-5, 44:58] == 2).all()


@pytest.mark.parametrize("values", [(0.0, 0.1, 0.2), (0.1, 0.4, 0.9), (0.3, 0.6, 1.0)])
def test_evidence_suits_how_strong_maps_are(values: tuple[float, float, float]) -> None:
    """A tenth of the image lies between object and background."""
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 27:33], image[:, 33:] = (250, 30, 30), (30, 30, 250)
    maps = maps_of([2], (40, 60), 0.0, stride=1)
    maps.maps[:, :, :27], maps.maps[:, :, 27:33], maps.maps[:, :, 33:] = values
    settings = IRNet.Settings(
        foreground_threshold="adaptive",
        background_threshold="adaptive",
        **small().settings.model_dump(include={"backbone"}),
    )
    labels = IRNet.evidence(settings, image, maps)["labels"]
    assert (labels[5:-5, 2:25] == 0).all()
    assert (labels[5:-5, 35:58] == 2).all()


def test_a_training_sample_has_a_label_for_every_cell() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (40, 60), dtype=np.uint8)
    settings, augmentation = small().settings, Augmentation(crop=50, mirror=False)
    image = np.zeros((40, 60, 3), np.uint8)
    view = augmentation({"image": image, "labels": labels}, IRNet.fields, np.random.default_rng(1))
    learned = IRNet.prepare(settings, view)
    assert learned["image"].shape == (3, 50, 50)
    assert learned["labels"].shape == (13, 13)
    assert learned["labels"].dtype == np.uint8
    assert {0, 1, 2, 255} == set(np.unique(learned["labels"])), "what lies outside of the image is void"


def test_the_walk_leaves_zeros_and_reaches_one() -> None:
    network, image = small().eval(), np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    nothing = network.refine(image, maps_of([1, 2], (30, 41), 0.0), IRNet.Options(), CPU)
    assert not nothing.maps.any()
    maps = maps_of([1, 2], (30, 41), 0.2)
    maps.maps[1, 2:4, 3:6] = 0.7
    walked = network.refine(image, maps, IRNet.Options(log2_steps=3), CPU)
    assert walked.labels.tolist() == [1, 2]
    assert not walked.has_background
    assert walked.upsampled().max() == pytest.approx(1, abs=1e-2)


def test_a_background_walks_along_where_asked() -> None:
    network, image = small().eval(), np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    maps = maps_of([1, 2], (30, 41), 0.1)
    maps.maps[1, 2:4, 3:6] = 0.5
    before, walked, flooded = (
        network.refine(image, maps, IRNet.Options(own_background=True, **options), CPU)
        for options in ({"log2_steps": 0, "restart": 0.99}, {"restart": 0.1}, {})
    )
    assert walked.labels.tolist() == [0, 1, 2]
    assert walked.has_background
    things = before.maps.argmax(0) == 2
    assert (things == (maps.maps[1] > 0.3)).all(), "Otsu's threshold decides, however weak the maps are"
    assert not (flooded.maps.argmax(0) == 2).any(), "with no boundary learned, the larger part wins everywhere"
    assert (walked.maps.argmax(0) == 2)[things].any(), "a restart keeps the thing"


def test_maps_of_another_stride_are_refused() -> None:
    with pytest.raises(WeaksegError, match="stride 4, these have stride 8"):
        small().refine(np.zeros((16, 16, 3), np.uint8), maps_of([1], (16, 16), stride=8), IRNet.Options(), CPU)


def test_an_enlarged_image_is_as_a_larger_image() -> None:
    network, image = small().eval(), np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    maps = maps_of([1, 2], (30, 41), 0.2)
    maps.maps[1, 2:4, 3:6] = 0.7
    found = network.refine(image, maps, IRNet.Options(log2_steps=3, enlargement=2), CPU)
    assert (found.stride, found.size, found.maps.shape) == (2, (30, 41), (2, 15, 21))

    larger = ActivationMaps(maps.labels, maps.at_stride(2).maps, (60, 82), 4)
    expected = network.refine(resize_image(image, 2), larger, IRNet.Options(log2_steps=3), CPU)
    # Both are divided by their largest value at the size of the image, which differs a little between the two sizes.
    one, other = found.maps[0], expected.maps[0]
    assert one.max() < 1
    assert one.std() > 0.01
    np.testing.assert_allclose(one / one.max(), other / other.max(), rtol=1e-5)


def test_enlarged_images_may_exceed_the_canvas(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_larger_images.cache_clear()
    image = np.zeros((40, 48, 3), np.uint8)
    boundary, field = small(canvas=48).eval().relations(image, CPU, enlargement=2)
    assert (boundary.shape, field.shape) == ((20, 24), (2, 20, 24))
    assert not caplog.records


def test_instances_score_their_largest_value_at_the_size_of_the_image() -> None:
    network, image, size = small().eval(), np.full((40, 48, 3), 90, np.uint8), (40, 48)
    maps = maps_of([1, 2], size, 0.0)
    maps.maps[0, 2:8, 1:4], maps.maps[1, 5, 9] = 0.4, 1.0  # something broad, and a peak of one cell
    options = IRNet.InstanceOptions(log2_steps=1)
    found = network.instances(image, maps, options, CPU)

    boundary, field = network.relations(image, CPU)
    masks = clusters(field.numpy(), centroids(field.numpy()))
    apart = np.concatenate([one * masks for one in maps.maps])
    walked = boundary_walk(torch.from_numpy(apart).float(), boundary, radius=5, beta=10, steps=2)
    large = torch.nn.functional.interpolate(walked[None], size, mode="bilinear", align_corners=False)[0].numpy()
    assert large.max() < 0.9 * float(walked.max()), "the peak is narrow"
    largest_inside = [large[:, mask].max() for mask in found.masks]
    np.testing.assert_allclose(found.scores, largest_inside / large.max(), rtol=1e-5)
    assert set(found.labels.tolist()) == {1, 2}
    assert found.scores.max() == pytest.approx(1, abs=1e-6)

    refined = network.refine(image, maps, IRNet.Options(log2_steps=1), CPU)
    assert refined.maps.max() == 1, "maps are stored in [0, 1]"


def test_instances_of_an_enlarged_image_have_the_size_of_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    found = small().eval().instances(image, maps_of([2], (30, 41)), IRNet.InstanceOptions(enlargement=4), CPU)
    assert found.masks.shape[1:] == (30, 41)
    assert len(found.labels) > 0
