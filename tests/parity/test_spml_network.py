"""SPML's networks, classifier, checkpoints and training against their reference (spml.md section 10)."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import agrees
from weakseg.data.transforms import crop, normalised_crop, top_left_crop
from weakseg.errors import WeaksegError
from weakseg.labels import UNLABELLED, VOID
from weakseg.methods.base import means
from weakseg.methods.spml import SPML, original_name, read_published
from weakseg.methods.spml.clustering import colours, cone_kernel, local_features, resize_by_corner
from weakseg.methods.spml.network import PyramidPooling, deeplab_head, softmax_classifier
from weakseg.methods.spml_classifier import SPMLClassifier
from weakseg.models.norm import SharedBatchNorm2d, use_batch_statistics
from weakseg.models.registry import BackboneSettings
from weakseg.models.resnet import DeepStemResNet
from weakseg.models.weights import read_state
from weakseg.ops.activation import normalise_image
from weakseg.optimisation import TrainSettings, build_optimiser
from weakseg.pipeline.convert import convert

Vectors = dict[str, np.ndarray]
BACKBONE = BackboneSettings(name="resnet101_deep_stem", output_stride=8, weights=None, frozen_stages=2)
CLASSES = 20


def original_names(network: nn.Module) -> dict[str, str]:
    """The authors' names of the tensors of a network, by our names."""
    stem = itertools.product(["conv1.conv1"], "01346")
    units = itertools.product((f"res{stage}.{block}" for stage in range(2, 6) for block in range(23)), LAYERS)
    theirs = [
        *(f"resnet_backbone.{stem_name}.{number}" for stem_name, number in stem),
        "resnet_backbone.conv1.bn1",
        *(f"resnet_backbone.{block}.{layer}" for block, layer in units),
        *(f"aspp.aspp_{number}.0" for number in range(1, 5)),
        *(f"pspp.0.pspp_{number}.{part}" for number in range(1, 5) for part in "12"),
        *("pspp.0.conv.0", "pspp.0.conv.1", "pspp.1"),
        *(f"semantic_classifier.{part}" for part in "014"),
    ]
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    by_ours = {original_name(f"{name}.{part}"): f"{name}.{part}" for name in theirs for part in parts}
    return {name: by_ours[name] for name in network.state_dict()}


LAYERS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")


def filled(parity: Any, network: nn.Module) -> dict[str, Tensor]:
    """The authors' state of a network, filled."""
    names, state = original_names(network), network.state_dict()
    values = parity.fill.fill_state_dict({names[name]: tuple(tensor.shape) for name, tensor in state.items()})
    return {name: torch.from_numpy(array) for name, array in values.items()}


def unfilled(settings: SPML.Settings) -> SPML:
    """A network without numbers, which takes no time to make."""
    with torch.device("meta"):
        return SPML(settings, CLASSES)


def fill(parity: Any, network: nn.Module) -> None:
    state = filled(parity, network)
    network.load_state_dict({name: state[theirs] for name, theirs in original_names(network).items()}, assign=True)


def fill_part(parity: Any, part: nn.Module, prefix: str = "", rename: Any = lambda name: name) -> None:
    shapes = {prefix + rename(name): tuple(tensor.shape) for name, tensor in part.state_dict().items()}
    values = parity.fill.fill_state_dict(shapes)
    part.load_state_dict({name: torch.from_numpy(values[prefix + rename(name)]) for name in part.state_dict()})


# Heads ----------------------------------------------------------------------------------------------------------------


@pytest.mark.cases("spml/heads", "*_densepose")
def test_local_features(parity: Any, case: str) -> None:
    vectors = parity("spml/heads")
    images, expected = torch.from_numpy(vectors[f"{case}_in"]), vectors[f"{case}_densepose"]
    size = expected.shape[1:3]
    agrees(local_features(images, size), vectors[f"{case}_loc"], relative=1e-5)
    agrees(local_features(images, size, with_colours=True), expected, relative=1e-5)
    agrees(cone_kernel().expand(vectors["local_kernel"].shape), vectors["local_kernel"], relative=1e-5)
    agrees(colours(images, size), expected[..., 2:], relative=1e-5)


@pytest.mark.cases("spml/heads", "aspp*_out")
def test_deeplab_head(parity: Any, case: str) -> None:
    vectors = parity("spml/heads")
    features, expected = torch.from_numpy(vectors[f"aspp{case}_in"]), vectors[f"aspp{case}_out"]
    head = deeplab_head(features.shape[1], expected.shape[1], (6, 12, 18, 24))
    fill_part(parity, head, rename=lambda name: f"aspp_{int(name[1]) + 1}.0.{name[3:]}")
    agrees(head(features), expected, relative=1e-5)


@pytest.mark.cases("spml/heads", "pspp*_eval")
def test_pspnet_head(parity: Any, case: str) -> None:
    vectors = parity("spml/heads")
    features, expected = torch.from_numpy(vectors[f"pspp{case}_in"]), vectors[f"pspp{case}_eval"]
    head = PyramidPooling(features.shape[1], expected.shape[1])
    fill_part(parity, head)
    agrees(head.eval()(features), expected, relative=1e-5)


def test_pspnet_head_learns_statistics(parity: Any) -> None:
    vectors = parity("spml/heads")
    features, expected = torch.from_numpy(vectors["pspp_in"]), vectors["pspp_train"]
    head = PyramidPooling(features.shape[1], expected.shape[1])
    fill_part(parity, head)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    agrees(head.train()(features), expected, relative=1e-5)
    # The reference's arrays pspp_after_* are the statistics before the pass; the classifier's are those after it.
    whole = features.mean((2, 3)) @ before["pspp_1.1.weight"][:, :, 0, 0].T
    mean, variance = whole.mean(0), whole.var(0)
    norm = head.get_submodule("pspp_1.2")
    torch.testing.assert_close(norm.running_mean, 0.9 * before["pspp_1.2.running_mean"] + 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 * before["pspp_1.2.running_var"] + 0.1 * variance)


def test_labels_come_to_the_size_of_embeddings(parity: Any) -> None:
    vectors = parity("spml/heads")
    labels = torch.from_numpy(vectors["resize_labels_in"])
    for name in ("out", "up"):
        expected = vectors[f"resize_labels_{name}"]
        np.testing.assert_array_equal(resize_by_corner(labels, expected.shape[1:]), expected)


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.cases("spml/networks", "*_embedding")
def test_a_network(parity: Any, case: str) -> None:
    vectors = parity("spml/networks")
    expected = vectors[f"{case}_embedding"]
    head = "deeplab" if case == "deeplab" else "pspnet"
    settings = SPML.Settings(backbone=BACKBONE, head=head, dimensions=expected.shape[1], colours=case == "densepose")
    network = unfilled(settings).eval()
    fill(parity, network)
    check_reading(network, settings)
    batch = {"image": torch.from_numpy(normalise_image(vectors["image"]))[None]}
    with torch.no_grad():
        for stage, features in zip((2, 3, 4, 5), network.backbone(batch["image"])[1:], strict=True):
            assert features.shape == tuple(vectors[f"{case}_res{stage}_shape"])
            agrees(parity.stats(features, 16), vectors[f"{case}_res{stage}_stats"], relative=1e-4)
        embeddings = network.embeddings(batch)
    agrees(embeddings, expected, relative=1e-4)
    full = F.interpolate(embeddings, vectors["image"].shape[:2], mode="bilinear", align_corners=False)
    agrees(parity.stats(full, 16), vectors[f"{case}_full_stats"], relative=1e-4)
    agrees(full[:, :4, ::8, ::8], vectors[f"{case}_full_sample"], relative=1e-4)
    size = network.embedding_size(vectors["image"].shape[:2])
    assert size == expected.shape[2:]
    local = local_features(batch["image"], size, with_colours=settings.colours)
    step = 1 if settings.colours else 4
    agrees(local[:, ::step, ::step], vectors[f"{case}_local"], relative=1e-4)

    groups = network.param_groups(1.0)
    classifier = {id(parameter) for parameter in network.classifier.parameters()}
    for group in groups:  # the reference's has no classifier
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in classifier]
    np.testing.assert_array_equal([group["lr"] for group in groups], vectors[f"{case}_group_lr"])
    np.testing.assert_array_equal(["weight_decay" in group for group in groups], vectors[f"{case}_group_wd0"])
    tensors = [len(group["params"]) for group in groups]
    np.testing.assert_array_equal(tensors, vectors[f"{case}_group_tensors"])
    elements = [sum(p.numel() for p in group["params"]) for group in groups]
    np.testing.assert_array_equal(elements, vectors[f"{case}_group_elements"])
    embedding = [tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier.")]
    kernel = [torch.empty(3, 1, 5, 5)] if settings.colours else []
    assert len([*embedding, *kernel]) == vectors[f"{case}_state_entries"]
    assert sum(tensor.numel() for tensor in [*embedding, *kernel]) == vectors[f"{case}_state_elements"]


def check_reading(network: SPML, settings: SPML.Settings) -> None:
    """The authors' names of a network's tensors say which network it is."""
    names, own = original_names(network), network.state_dict()
    published = {f"embedding_model.module.{names[name]}": tensor for name, tensor in own.items()}
    if settings.colours:
        published["embedding_model.module.lfn.smooth_kernel.weight"] = cone_kernel().expand(3, 1, 5, 5)
    reading = read_published(published)
    assert reading.num_classes == CLASSES
    for name in ("head", "dimensions", "colours"):
        assert getattr(reading.settings, name) == getattr(settings, name)
    assert reading.state.keys() == own.keys()
    assert all(reading.state[name] is tensor for name, tensor in own.items())
    assert len(reading.ignored) == settings.colours


def test_a_published_checkpoint_becomes_a_model_folder(tmp_path: Path) -> None:
    names = original_names(unfilled(SPML.Settings(backbone=BACKBONE, dimensions=8)))
    shapes = unfilled(SPML.Settings(backbone=BACKBONE, dimensions=8)).state_dict()
    state = {
        theirs: torch.full_like(shapes[name], index % 7, device="cpu")
        for index, (name, theirs) in enumerate(names.items())
    }
    classifier = {name: tensor for name, tensor in state.items() if name.startswith("semantic_classifier.")}
    embedding = {f"module.{name}": tensor for name, tensor in state.items() if name not in classifier}
    torch.save({"embedding_model": embedding, "prediction_model": classifier}, tmp_path / "model-29999.pth")
    report = convert(tmp_path / "model-29999.pth", tmp_path / "out")
    assert len(report.matched) == len(state)
    assert (report.missing, report.ignored) == ([], [])
    converted = read_state(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(converted[name], state[theirs]) for name, theirs in names.items())


def known(labels: Tensor) -> Tensor:
    """With unlabelled pixels as void."""
    return labels.masked_fill(labels == UNLABELLED, VOID)


# Classifier -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_classifier(parity: Any, mode: str) -> None:
    vectors = parity("spml/classifier")
    embedding, labels = torch.from_numpy(vectors["embedding"]), torch.from_numpy(vectors["label"])
    settings = SPML.Settings(
        backbone=BackboneSettings(name="small", output_stride=8, weights=None), dimensions=embedding.shape[1], dropout=0
    )
    network = SPML(settings, vectors["eval_logit"].shape[1] - 1)
    fill_part(parity, network.classifier, "semantic_classifier.")
    network.train(mode == "train")
    scores = network.classified(embedding)
    if mode == "eval":
        agrees(scores, vectors["eval_logit"], relative=1e-5)
    else:
        agrees(network.classifier[1].running_mean, vectors["train_running_mean"], relative=1e-5)
        agrees(network.classifier[1].running_var, vectors["train_running_var"], relative=1e-5)
    scores = F.interpolate(scores, labels.shape[1:], mode="bilinear", align_corners=False)
    agrees(scores[..., ::6, ::6], vectors[f"{mode}_logit_sample"], relative=1e-5)
    np.testing.assert_array_equal(scores.argmax(1), vectors[f"{mode}_prediction"])
    loss = F.cross_entropy(scores, known(labels).long(), ignore_index=VOID)
    assert loss.item() == pytest.approx(vectors[f"{mode}_loss"], rel=1e-5)
    loss.backward()
    for name in parity.cases(vectors, f"{mode}_grad_semantic_classifier.*"):
        gradient = network.classifier.get_parameter(name).grad
        assert gradient is not None
        agrees(parity.stats(gradient, 32), vectors[f"{mode}_grad_semantic_classifier.{name}"], relative=1e-4)


# Training -------------------------------------------------------------------------------------------------------------

MODEL: dict[str, Any] = {"backbone": BACKBONE, "dimensions": 64, "dropout": 0}
TRAIN = TrainSettings(
    steps=4, optimiser="caffe_sgd", lr=3e-3, momentum=0.9, weight_decay=5e-4, warmup_steps=2, batch_size=3
)


def short(network: Any) -> None:
    """One block a stage, as the reference has it for want of time."""
    network.backbone = DeepStemResNet(blocks=(1, 1, 1, 1))
    use_batch_statistics(network.backbone, 3e-4, SharedBatchNorm2d)
    network.backbone.freeze(2)


def batch_of(vectors: Vectors, images: tuple[int, ...]) -> dict[str, Tensor]:
    """The images with their labels and regions, padded to the size of the first."""
    height, width = vectors["image0"].shape[:2]
    batch: dict[str, list[np.ndarray]] = {"image": [], "labels": [], "regions": [], "tags": []}
    for number in images:
        image, semantic = vectors[f"image{number}"], vectors[f"semantic{number}"]
        place = top_left_crop(image.shape[:2], max(height, width))
        batch["image"].append(normalised_crop(image, place)[:, :height, :width])
        for name, labels in (("labels", semantic), ("regions", vectors[f"instance{number}"])):
            batch[name].append(crop(labels, place, VOID)[:height, :width])
        item = {"labels": semantic, "tags": np.zeros(CLASSES, np.float32)}
        batch["tags"].append(SPML.prepare_image(SPML.Settings(), item)["tags"])
    return {name: torch.from_numpy(np.stack(arrays)) for name, arrays in batch.items()}


def train(parity: Any, network: Any, stage: str) -> Any:
    """Four updates; before and after each, everything the reference says of them is compared."""
    vectors = parity("spml/training")
    fill(parity, network)
    network.train()
    names = {theirs: ours for ours, theirs in original_names(network).items()}
    optimiser = build_optimiser(TRAIN, network.param_groups(TRAIN.lr))
    base_rates = [group["lr"] for group in optimiser.param_groups]
    for step, images in enumerate([(0, 1, 2), (3, 4, 5)] * 2):
        prefix = f"{stage}_it{step}"
        factor = TRAIN.rate_factor(step, 4, 1)
        assert factor * TRAIN.lr == pytest.approx(vectors[f"{prefix}_lr"], rel=1e-6)
        for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        optimiser.zero_grad()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        batch = batch_of(vectors, images)
        if stage == "classifier":
            batch["labels"] = known(batch["labels"])
        counts = network.counts(batch)
        network.begin_update(step, 4)
        losses = means(network.losses(batch), counts)
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        network.end_update()
        yield vectors, prefix, losses, counts, step
        for theirs in parity.cases(vectors, f"{prefix}_after/*"):
            now, was = network.state_dict()[names[theirs]], before[names[theirs]]
            agrees(parity.stats(now, 8), vectors[f"{prefix}_after/{theirs}"], relative=1e-4)
            if (change := vectors.get(f"{prefix}_delta/{theirs}")) is not None:
                agrees(parity.stats(now - was, 8), change, relative=2e-2 if step else 1e-3)
        learning = dict(network.named_parameters())
        for theirs in [name.rpartition("/")[2] for name in vectors if name.startswith(f"{prefix}_grad/")]:
            if learning[names[theirs]].requires_grad:
                gradient = learning[names[theirs]].grad
                assert gradient is not None
                agrees(parity.stats(gradient, 8), vectors[f"{prefix}_grad/{theirs}"], relative=1e-3)


def test_training_an_embedding(parity: Any) -> None:
    with torch.device("meta"):
        network = SPML(SPML.Settings(grid=(4, 4), **MODEL), CLASSES)
        short(network)
    for vectors, prefix, losses, counts, step in train(parity, network, "embedding"):
        tolerance = 1e-3 if step else 1e-4
        found = {
            "sem_ann": losses["annotation"] + losses["cross_entropy"],
            "sem_occ": losses["cooccurrence"],
            "img_sim": losses["image_similarity"],
        }
        for name, value in found.items():
            assert value.item() == pytest.approx(vectors[f"{prefix}_{name}_loss"], rel=tolerance), (prefix, name)
        assert counts["cooccurrence"] == vectors[f"{prefix}_num_pixels"]
        now = network.memory.entries
        assert len(now[-1].vectors) == vectors[f"{prefix}_num_prototypes"]
        sizes = [len(entry.vectors) for entry in now[:-1]]
        assert sizes[-1:] == vectors[f"{prefix}_memory_sizes"].tolist()[-1:]


def test_training_a_classifier(parity: Any) -> None:
    with torch.device("meta"):
        network = SPMLClassifier(SPMLClassifier.Settings(**MODEL), CLASSES)
        short(network)
    network.backbone.requires_grad_(False)
    for vectors, prefix, losses, _, step in train(parity, network, "classifier"):
        tolerance = 1e-3 if step else 1e-4
        assert losses["segmentation"].item() == pytest.approx(vectors[f"{prefix}_sem_ann_loss"], rel=tolerance)


def test_a_classifier_has_the_authors_layers() -> None:
    kinds = [type(layer).__name__ for layer in softmax_classifier(4, 3, 0.5)]
    assert kinds == ["Conv2d", "SharedBatchNorm2d", "ReLU", "Dropout", "Conv2d"]


def test_a_checkpoint_without_a_classifier_is_refused() -> None:
    with pytest.raises(WeaksegError, match="classifier"):
        read_published({"embedding_model.aspp.aspp_1.0.bias": torch.zeros(64)})
