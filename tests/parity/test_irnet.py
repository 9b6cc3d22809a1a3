"""IRNet's inter-pixel network, its labels, its losses and what it makes of maps, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import agrees, as_batch
from weakseg.errors import WeaksegError
from weakseg.methods.base import means
from weakseg.methods.irnet import (
    CHECKPOINTS,
    IRNet,
    combined_labels,
    confident_labels,
    over_threshold,
    pair_losses,
    read_irnet,
    walk,
)
from weakseg.models.registry import BackboneSettings
from weakseg.ops.activation import ActivationMaps, normalise_image
from weakseg.ops.average_precision import AveragePrecision
from weakseg.ops.instances import Instances, centroids, clusters, compressed, connected_instances
from weakseg.ops.pairs import count_pairs, kinds_of_pairs, shifted
from weakseg.ops.pairsums import strongest_on_paths
from weakseg.ops.randomwalk import pair_offsets
from weakseg.ops.resize import resize_labels
from weakseg.ops.schedule import poly_factor

CPU = torch.device("cpu")
REFERENCE_NAMES = {
    "backbone.": "resnet50.",
    "boundary.logits.": "fc_edge6.",
    "displacement.coarse.": "fc_dp6.",
    "displacement.fine.": "fc_dp7.",
    "displacement.vectors.": "fc_dp7.3.",
    "displacement.mean": "mean_shift.running_mean",
    **{f"boundary.reductions.{k}.": f"fc_edge{k + 1}." for k in range(5)},
    **{f"displacement.reductions.{k}.": f"fc_dp{k + 1}." for k in range(5)},
}


def reference_name(name: str) -> str:
    (prefix,) = (prefix for prefix in REFERENCE_NAMES if name.startswith(prefix))
    return REFERENCE_NAMES[prefix] + name.removeprefix(prefix)


def irnet(**changes: Any) -> IRNet:
    backbone = BackboneSettings(name="resnet50", output_stride=16, dilated=False, weights=None)
    return IRNet(IRNet.Settings(backbone=backbone, **changes), 20)


def filled(parity: Any, seed: int, **changes: Any) -> IRNet:
    network = irnet(**changes)
    state = network.state_dict()
    network.load_state_dict(
        {
            name: torch.from_numpy(np.asarray(parity.fill.fill(reference_name(name), tuple(tensor.shape), seed)))
            for name, tensor in state.items()
        }
    )
    return network.eval()


@pytest.fixture(scope="module")
def network(parity: Any) -> IRNet:
    vectors = parity("irnet/irn_net")
    return filled(parity, int(vectors["seed"]), canvas=int(vectors["crop_size"].item()))


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.cases("irnet/irn_net", "image_*")
def test_network(parity: Any, network: IRNet, case: str) -> None:
    vectors = parity("irnet/irn_net")
    assert sum(parameter.numel() for parameter in network.parameters()) == 24_902_561
    agrees(network.displacement.mean, vectors["running_mean"], absolute=0)
    images = torch.from_numpy(normalise_image(vectors[f"image_{case}"]))[None]
    with torch.no_grad():
        features = network.features(torch.cat([images, images.flip(3)]))
        logits, field = network.boundary(features), network.displacement(features)
    np.testing.assert_array_equal([stage.shape for stage in features], vectors[f"tap_shapes_{case}"])
    agrees(np.stack([parity.stats(stage, 8) for stage in features]), vectors[f"tap_stats_{case}"], absolute=5e-5)
    agrees(logits[:, None], vectors[f"edge_logit_{case}"], absolute=5e-5)
    agrees(field, vectors[f"dp_eval_{case}"], absolute=5e-5)
    agrees(field + network.displacement.mean[:, None, None], vectors[f"dp_train_{case}"], absolute=5e-5)


@pytest.mark.cases("irnet/irn_net", "image_*")
def test_boundaries_and_displacements_of_an_image(parity: Any, network: IRNet, case: str) -> None:
    vectors = parity("irnet/irn_net")
    boundary, field = network.relations(vectors[f"image_{case}"], CPU)
    agrees(boundary[None], vectors[f"edge_{case}"], absolute=5e-5)
    agrees(field, vectors[f"dp_{case}"], absolute=5e-5)


def test_the_usual_canvas(parity: Any) -> None:
    vectors = parity("irnet/irn_net")
    boundary, field = filled(parity, int(vectors["seed"])).relations(vectors["image_0"], CPU)
    agrees(boundary[None], vectors["edge_canvas512"], absolute=5e-5)
    agrees(field, vectors["dp_canvas512"], absolute=5e-5)


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.cases("irnet/ir_label", "image_*")
def test_labels(parity: Any, case: str) -> None:
    vectors = parity("irnet/ir_label")
    image, maps, keys = (vectors[f"{name}_{case}"] for name in ("image", "high_res", "keys"))
    thresholds = [float(vectors[f"conf_{which}_thres"]) for which in ("fg", "bg")]
    labels = np.array([0, *(keys + 1)], np.uint8)
    found = confident_labels(image, maps, thresholds, "irnet")
    for which, threshold, refined in zip(("fg", "bg"), thresholds, found, strict=True):
        np.testing.assert_array_equal(over_threshold(maps, threshold), vectors[f"{which}_before_crf_{case}"])
        assert (refined == vectors[f"{which}_after_crf_{case}"]).mean() >= 0.995
    theirs = (labels[vectors[f"{which}_after_crf_{case}"]] for which in ("fg", "bg"))
    np.testing.assert_array_equal(combined_labels(*theirs), vectors[f"ir_label_{case}"])
    settings = IRNet.Settings(foreground_threshold=thresholds[0], background_threshold=thresholds[1])
    evidence = IRNet.evidence(
        settings, image, ActivationMaps((keys + 1).astype(np.int16), maps, image.shape[:2], stride=1)
    )
    assert (evidence["labels"] == vectors[f"ir_label_{case}"]).mean() >= 0.99


# Losses ---------------------------------------------------------------------------------------------------------------


def in_reference_order(vectors: dict[str, np.ndarray]) -> list[int]:
    radius = int(vectors["radius"])
    return [pair_offsets(radius).index((dy, dx)) for dy, dx in vectors["offsets"].tolist()]


def test_pairs(parity: Any) -> None:
    vectors = parity("irnet/affinity")
    radius, order = int(vectors["radius"]), in_reference_order(vectors)
    boundary, field, labels = (torch.from_numpy(vectors[name]) for name in ("edge", "disp", "label"))
    strongest = torch.stack([values for values, _ in strongest_on_paths(boundary[:, 0], radius)], 1)
    agrees((1 - strongest).flatten(2)[:, order], vectors["affinity"], absolute=1e-6)
    places = torch.stack([place for _, place in strongest_on_paths(boundary[:, 0], radius)], 1)
    assert torch.equal(boundary.flatten()[places], strongest)
    moved = torch.stack([first - second for first, second in shifted(field, radius)], 2)
    agrees(moved.flatten(3)[:, :, order], vectors["pair_displacement"], absolute=1e-6)
    targets = torch.tensor(pair_offsets(radius)).T[None, :, :, None]
    agrees((moved.flatten(3) - targets).abs()[:, :, order], vectors["displacement_error"], absolute=1e-6)
    kinds = torch.stack([torch.stack(kinds_of_pairs(*ends)) for ends in shifted(labels, radius)], 1)
    for name, chosen in zip(("bg_pos", "fg_pos", "neg"), kinds, strict=True):
        np.testing.assert_array_equal(chosen.flatten(1)[order], vectors[name])


def as_reported(terms: dict[str, Tensor]) -> list[float]:
    """The terms of the losses as the reference reports them: without their weight ½."""
    boundary = terms["boundary_background"] + terms["boundary_foreground"], terms["boundary_between"]
    return [2 * term.item() for term in (*boundary, terms["displacement_foreground"], terms["displacement_background"])]


def test_losses_and_gradients(parity: Any) -> None:
    vectors = parity("irnet/irn_loss")
    labels, radius = resize_labels(vectors["label"], vectors["label_quarter"].shape[1:]), int(vectors["radius"])
    np.testing.assert_array_equal(labels, vectors["label_quarter"])
    labels = torch.from_numpy(labels)
    logits = torch.from_numpy(vectors["edge_logits"]).requires_grad_()
    field = torch.from_numpy(vectors["displacement"]).requires_grad_()
    with torch.device("meta"):
        network = irnet(radius=radius)
    terms = means(pair_losses(torch.sigmoid(logits[:, 0]), field, labels, radius), network.counts({"labels": labels}))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    names = ("pos_affinity_loss", "neg_affinity_loss", "dp_fg_loss", "dp_bg_loss")
    np.testing.assert_allclose(as_reported(terms), [vectors[name] for name in names], rtol=1e-5)
    np.testing.assert_allclose(total.item(), vectors["total"], rtol=1e-5)
    agrees(logits.grad, vectors["grad_edge_logits"], absolute=1e-6)
    agrees(field.grad, vectors["grad_displacement"], absolute=1e-6)
    # The reference adds 1e-5 to what it counts.
    counts = [round(float(vectors[name])) for name in ("n_bg_pos", "n_fg_pos", "n_neg")]
    assert count_pairs(labels, radius).tolist() == counts
    agrees(field.detach().mean((0, 2, 3)), vectors["mean_displacement"], absolute=1e-6)


# Training -------------------------------------------------------------------------------------------------------------


def test_training_steps(parity: Any) -> None:
    vectors = parity("irnet/train_irn")
    network = filled(parity, int(vectors["seed"]), canvas=0)
    network.displacement.mean.zero_()
    network.train()
    batch = {
        "image": as_batch(vectors["images"]),
        "labels": torch.from_numpy(vectors["label_quarter"]),
    }
    momentum, weight_decay, dampening, nesterov = vectors["optimiser"][0].tolist()
    assert (dampening, nesterov) == (0, 0)
    groups, steps = network.param_groups(lr=float(vectors["lr"][0, 0])), len(vectors["losses"])
    optimiser = torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)
    rates = [group["lr"] for group in optimiser.param_groups]
    watched = [next(n for n in network.state_dict() if reference_name(n) == name) for name in vectors["watched"]]
    for step in range(steps):
        for name, expected in zip(watched, vectors["checksums"][step], strict=True):
            np.testing.assert_allclose(
                parity.checksum(network.state_dict()[name]), expected, rtol=1e-3, atol=1e-7, err_msg=name
            )
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * poly_factor(step, steps, power=0.9)
        np.testing.assert_allclose([group["lr"] for group in optimiser.param_groups], vectors["lr"][step], rtol=1e-9)
        terms = means(network.losses(batch), network.counts(batch))
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        np.testing.assert_allclose(as_reported(terms), vectors["losses"][step], rtol=1e-4)
        parameters = dict(network.named_parameters())
        for name, expected in zip(watched, vectors["grad_norms"][step], strict=True):
            gradient = parameters[name].grad if name in parameters else None
            norm = np.nan if gradient is None else gradient.norm().item()
            np.testing.assert_allclose(norm, expected, rtol=1e-3, err_msg=name)
        optimiser.step()
    for name, expected in zip(watched, vectors["checksums"][steps], strict=True):
        if name != "displacement.mean":
            np.testing.assert_allclose(
                parity.checksum(network.state_dict()[name]), expected, rtol=1e-3, atol=1e-7, err_msg=name
            )
    network.eval()
    network.conclude([{"image": image} for image in vectors["images"]], CPU)
    np.testing.assert_allclose(network.displacement.mean.numpy(), vectors["mean_shift_after"], rtol=1e-3)


def test_optimiser(parity: Any) -> None:
    vectors = parity("irnet/optimiser")
    steps, power = int(vectors["max_step"]), float(vectors["power"])
    (momentum, first_decay), (_, second_decay) = vectors["group_settings"].tolist()
    rates = vectors["lr"][0].tolist()
    # The vectors do not say how many parameters are in the first group; its decay explains their first step.
    start, end, *_ = vectors["parameters"]
    by_first_group = start - rates[0] * (vectors["gradients"][0] + first_decay * start)
    size = int((np.abs(by_first_group - end) <= 1e-6).sum())
    parameters = [torch.from_numpy(part).requires_grad_() for part in np.split(start, [size])]
    groups = [
        {"params": [parameter], "lr": rate, "weight_decay": decay}
        for parameter, rate, decay in zip(parameters, rates, (first_decay, second_decay), strict=True)
    ]
    optimiser = torch.optim.SGD(groups, momentum=momentum)
    for step, gradient in enumerate(vectors["gradients"]):
        for group, rate, expected in zip(optimiser.param_groups, rates, vectors["lr"][step], strict=True):
            group["lr"] = rate * poly_factor(step, steps, power)
            assert abs(group["lr"] - expected) <= 1e-6
        for parameter, part in zip(parameters, np.split(gradient, [size]), strict=True):
            parameter.grad = torch.from_numpy(part)
        optimiser.step()
        agrees(
            torch.cat([parameter.detach() for parameter in parameters]), vectors["parameters"][step + 1], absolute=1e-6
        )


# The authors' file ----------------------------------------------------------------------------------------------------


CONSTANTS = ("path_indices", "disp_target")


@pytest.fixture(scope="module")
def checkpoint(parity: Any) -> dict[str, Tensor]:
    """A state dict with all names of a real file, aliases sharing their storage."""
    vectors, seed = parity("irnet/checkpoint_keys"), int(parity("irnet/irn_net")["seed"])
    columns = (vectors[name].tolist() for name in ("irn_keys", "irn_shapes", "irn_alias_of"))
    state: dict[str, Tensor] = {}
    for key, shape, alias in zip(*columns, strict=True):
        dimensions = tuple(int(n) for n in shape.split("x")) if shape else ()
        if alias != key:
            state[key] = state[alias]
        elif key.startswith(CONSTANTS):
            state[key] = torch.zeros(1).expand(dimensions)
        else:
            canonical = "mean_shift.running_mean" if key.endswith("4.running_mean") else key
            state[key] = torch.from_numpy(np.asarray(parity.fill.fill(canonical, dimensions, seed)))
        assert tuple(state[key].shape) == dimensions
    return state


def test_reads_the_original_checkpoint(network: IRNet, checkpoint: dict[str, Tensor]) -> None:
    assert [kind.name for kind in CHECKPOINTS if kind.matches(checkpoint)] == ["irnet"]
    reading = read_irnet(checkpoint)
    assert reading.num_classes is None
    assert len(reading.ignored) == sum(key.startswith(CONSTANTS) for key in checkpoint)
    assert reading.settings == IRNet.Settings(
        backbone=irnet().settings.backbone.model_copy(update={"frozen_stages": 5})
    )
    assert set(reading.state) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(reading.state[name], tensor), name


def test_refuses_other_checkpoints(checkpoint: dict[str, Tensor]) -> None:
    for name in ("fc_edge7.0.weight", "dp_layers.7.0.weight", "stage6.0.0.bn1.bias", "classifier.weight"):
        with pytest.raises(WeaksegError, match=f"it has a tensor {name}"):
            read_irnet({name: torch.zeros(1)})
    other = {**checkpoint, "edge_layers.0.1.bias": torch.ones(32)}
    with pytest.raises(WeaksegError, match=r"copies of boundary\.reductions\.0\.1\.bias differ"):
        read_irnet(other)


# The walk -------------------------------------------------------------------------------------------------------------


class Given(IRNet):
    """Boundaries and displacements that were made by somebody else."""

    def __init__(self, boundary: np.ndarray, field: np.ndarray | None = None) -> None:
        torch.nn.Module.__init__(self)
        self.given = (
            torch.from_numpy(boundary),
            torch.zeros(2, *boundary.shape) if field is None else torch.from_numpy(field),
        )

    def boundary_map(self, image: np.ndarray, device: torch.device, enlargement: int = 1) -> Tensor:
        return self.given[0]

    def relations(self, image: np.ndarray, device: torch.device, enlargement: int = 1) -> tuple[Tensor, Tensor]:
        return self.given


def semantic_labels(network: IRNet, vectors: dict[str, np.ndarray], case: str, image: np.ndarray) -> np.ndarray:
    labels = (vectors[f"keys_{case}"] + 1).astype(np.int16)
    maps = ActivationMaps(labels, vectors[f"cam_{case}"], image.shape[:2])
    walked = network.refine(image, maps, IRNet.Options(), CPU)
    return np.array([0, *labels])[over_threshold(walked.upsampled(), float(vectors["bg_thres"]))]


@pytest.mark.cases("irnet/sem_seg", "size_*")
def test_semantic_labels_of_given_boundaries(parity: Any, case: str) -> None:
    vectors = parity("irnet/sem_seg")
    image = np.zeros((*vectors[f"size_{case}"].tolist(), 3), np.uint8)
    labels = semantic_labels(Given(vectors[f"edge_{case}"][0]), vectors, case, image)
    assert (labels == vectors[f"label_{case}"]).mean() >= 0.999


@pytest.mark.cases("irnet/sem_seg", "image_*")
def test_semantic_labels_of_the_whole_chain(parity: Any, case: str) -> None:
    vectors = parity("irnet/sem_seg")
    network = filled(parity, int(vectors["seed"]), canvas=int(vectors["crop_size"].item()))
    image = vectors[f"image_{case}"]
    agrees(network.relations(image, CPU)[0][None], vectors[f"net_edge_{case}"], absolute=5e-5)
    assert (semantic_labels(network, vectors, case, image) == vectors[f"net_label_{case}"]).mean() >= 0.999


# Instances ------------------------------------------------------------------------------------------------------------


def test_centroids_and_clusters(parity: Any) -> None:
    vectors = parity("irnet/ins_seg")
    for steps in (1, 300):
        ends = centroids(vectors["field"], steps)
        expected = vectors[f"centroids_{steps}"]
        assert (ends == expected).all(0).mean() >= 0.99
        assert (ends == expected).mean() >= 0.99
    np.testing.assert_array_equal(compressed(vectors["compress_in"]), vectors["compress_out"])
    masks = clusters(vectors["field"], vectors["centroids_300"])
    np.testing.assert_array_equal(masks, vectors["cluster_masks"])


def equal_instances(ours: Instances, labels: np.ndarray, scores: np.ndarray, masks: np.ndarray) -> None:
    np.testing.assert_array_equal(ours.labels, labels)
    agrees(ours.scores, scores, absolute=1e-3)
    assert ours.masks.shape == masks.shape
    for mine, theirs in zip(ours.masks, masks, strict=True):
        assert (mine & theirs).sum() >= 0.99 * (mine | theirs).sum()


def test_connected_instances(parity: Any) -> None:
    vectors = parity("irnet/ins_seg")
    scores, masks, classes = (vectors[f"detect_{name}_in"] for name in ("scores", "masks", "classes"))
    found = connected_instances(scores, masks, classes.tolist(), masks.shape[1:], float(vectors["detect_min_area"]))
    equal_instances(found, vectors["detect_class"], vectors["detect_score"], vectors["detect_mask"])


@pytest.mark.cases("irnet/ins_seg", "size_*")
def test_instances_of_given_fields(parity: Any, case: str) -> None:
    vectors = parity("irnet/ins_seg")
    size, keys, cam, edge, field = (vectors[f"{name}_{case}"] for name in ("size", "keys", "cam", "edge", "dp"))
    masks = clusters(field, centroids(field))
    apart = ActivationMaps(
        np.repeat(keys + 1, len(masks)), (cam[:, None] * masks).reshape(-1, *cam.shape[1:]), tuple(size)
    )
    walked = walk(apart, torch.from_numpy(edge[0]), IRNet.Options())
    agrees(walked.maps, vectors[f"walk_{case}"], absolute=1e-4)
    image = np.zeros((*size.tolist(), 3), np.uint8)
    maps = ActivationMaps((keys + 1).astype(np.int16), cam, image.shape[:2])
    options = IRNet.InstanceOptions(background=float(vectors["bg_thres"]))
    found = Given(edge[0], field).instances(image, maps, options, CPU)
    equal_instances(found, vectors[f"class_{case}"] + 1, vectors[f"score_{case}"], vectors[f"mask_{case}"])


def test_average_precision(parity: Any) -> None:
    vectors = parity("irnet/eval")
    expected = vectors["ins_ap"]  # a place for each class, without the background
    every = parity.cases(vectors, "ins_gt_class_*")

    def measured(images: list[str]) -> AveragePrecision:
        counted = AveragePrecision(len(expected) + 1)
        for k in images:
            true_labels, masks = vectors[f"ins_gt_class_{k}"] + 1, vectors[f"ins_gt_mask_{k}"]
            truth = Instances(true_labels.astype(np.int16), np.ones(len(masks), np.float32), masks)
            labels, scores = (vectors[f"ins_class_{k}"] + 1).astype(np.int16), vectors[f"ins_score_{k}"]
            counted.update(truth, Instances(labels, scores, vectors[f"ins_mask_{k}"]), k)
        return counted

    for counted in (measured(every), measured(every[-1:]) + measured(every[:-1])):
        np.testing.assert_allclose(counted.average_precision()[1:], expected, rtol=0, atol=1e-9)
        assert abs(counted.mean - vectors["ins_map"]) <= 1e-9
