"""SPML: its losses against the dense form, two processes against one, memory, and what has no pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weakseg import parallel
from weakseg.errors import WeaksegError
from weakseg.labels import UNLABELLED, VOID
from weakseg.methods.base import means
from weakseg.methods.spml import SPML, LossSettings
from weakseg.methods.spml import losses as spml_losses
from weakseg.methods.spml.clustering import colours, grid_labels, normalised, numbered, places, spherical_kmeans
from weakseg.methods.spml.losses import contrastive_loss
from weakseg.methods.spml_classifier import SPMLClassifier
from weakseg.models.registry import BackboneSettings
from weakseg.optimisation import TrainSettings, build_optimiser
from weakseg.training import load_checkpoint, save_checkpoint

BACKBONE = BackboneSettings(name="small", output_stride=8, weights=None)
ALL_LOSSES: dict[str, Any] = {"feature_affinity": LossSettings(weight=0.5, concentration=12)}


# Losses ---------------------------------------------------------------------------------------------------------------


def dense_loss(
    pixels: Tensor, prototypes: Tensor, own: Tensor, same: Tensor, group: Tensor, kappa: float, own_only: bool
) -> Tensor:
    """The definition, with a matrix of all pixels and prototypes."""
    similarity = kappa * pixels @ prototypes.T
    is_own = torch.nn.functional.one_hot(own, len(prototypes)).bool()
    same = same[group]
    others = same & ~is_own
    lonely = ~others.any(1, keepdim=True) | torch.tensor(own_only)
    positive = torch.where(lonely, is_own, others)
    above = similarity.masked_fill(~positive, -torch.inf).logsumexp(1)
    below = similarity.masked_fill(same, -torch.inf).logsumexp(1)
    return (torch.logaddexp(above, below) - above).sum()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.sampled_from([1.0, 6.0, 16.0]), st.booleans(),
    st.integers(1, 64), st.integers(0, 10**6),
)  # fmt: skip
def test_a_loss_by_blocks_is_the_dense_one_with_its_gradients(
    count: int, segments: int, groups: int, kappa: float, own_only: bool, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = normalised(torch.randn(count, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    prototypes = normalised(torch.randn(segments, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    own = torch.randint(segments, (count,), generator=generator)
    group = torch.randint(groups, (count,), generator=generator)
    same = torch.rand(groups, segments, generator=generator) < 0.4
    found = []
    before, spml_losses.BLOCK = spml_losses.BLOCK, block
    try:
        loss = contrastive_loss(pixels, prototypes, own, same, group, kappa, own_only=own_only)
    finally:
        spml_losses.BLOCK = before
    for value in (loss, dense_loss(pixels, prototypes, own, same, group, kappa, own_only)):
        found.append([value.detach(), *torch.autograd.grad(3 * value, (pixels, prototypes))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_positives_far_behind_the_own_segment_count() -> None:
    """Where the own segment is subtracted from a sum in float32, they vanish."""
    pixel = torch.tensor([[1.0, 0.0]])
    prototypes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    same = torch.tensor([[True, True, False]])
    zero = torch.tensor([0])
    loss = contrastive_loss(pixel, prototypes, zero, same, zero, 16.0)
    assert loss.item() == pytest.approx(16, rel=1e-5)  # log((e^-16 + e^0) / e^-16)


# Clusters -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 300)), min_size=0, max_size=30))
def test_numbers_follow_the_order_of_tuples(rows: list[tuple[int, int, int]]) -> None:
    columns = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    ids, known = numbered(*columns.unbind(1))
    assert [tuple(row) for row in known.tolist()] == sorted(set(rows))
    assert torch.equal(known[ids], columns)


def test_clusters_do_not_depend_on_how_pixels_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = normalised(torch.randn(200, 6, generator=torch.Generator().manual_seed(1)))
    start = torch.arange(200) % 9
    whole = spherical_kmeans(vectors, start, 9)
    monkeypatch.setattr("weakseg.methods.spml.clustering.CHUNK", 70)
    assert torch.equal(spherical_kmeans(vectors, start, 9), whole)


def test_maps_of_one_row_and_images_of_one_colour() -> None:
    assert places((1, 3))[..., 0].tolist() == [[-0.5] * 3]
    assert grid_labels((4, 4), (1, 9)).shape == (1, 9)
    assert colours(torch.ones(1, 3, 16, 16), (4, 4)).abs().max() < 0.05
    assert colours(torch.rand(1, 3, 2, 2), (4, 4)).isfinite().all()


# The network ----------------------------------------------------------------------------------------------------------


def network(**changes: Any) -> SPML:
    torch.manual_seed(0)
    return SPML(SPML.Settings(backbone=BACKBONE, dimensions=8, grid=(2, 2), dropout=0, **changes), 2)


def batch_of(count: int, seed: int = 0, side: int = 32) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, UNLABELLED, VOID], (count, 4, 4)).repeat(side // 4, 1).repeat(side // 4, 2)
    regions = rng.integers(0, 700, (count, 2, 2)).repeat(side // 2, 1).repeat(side // 2, 2)
    return {
        "image": torch.from_numpy(rng.normal(size=(count, 3, side, side)).astype(np.float32)),
        "labels": torch.from_numpy(labels.astype(np.uint8)),
        "regions": torch.from_numpy(regions),
        "tags": torch.from_numpy((rng.random((count, 2)) < 0.5).astype(np.float32)),
    }


def known(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """With unlabelled pixels as void, as methods read labels that do not tell them apart."""
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == UNLABELLED, VOID)}


def total(of: SPML | SPMLClassifier, batch: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(means(of.losses(batch), of.counts(batch)).values())).sum()


@pytest.mark.parametrize("head", ["deeplab", "pspnet"])
def test_sizes(head: str) -> None:
    model = network(head=head).eval()
    images = torch.randn(2, 3, 37, 50)
    assert model.embeddings({"image": images}).shape == (2, 8, 10, 14)
    assert model.embedding_size((37, 50)) == (10, 14)
    assert model.logits({"image": images}).shape == (2, 3, 10, 14)


def test_all_of_the_network_learns_but_the_classifier_teaches_the_rest_nothing() -> None:
    model = network(**ALL_LOSSES).train()
    total(model, batch := batch_of(3)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    model.losses(batch)["cross_entropy"].backward()
    assert all(parameter.grad is None for parameter in (*model.backbone.parameters(), *model.head.parameters()))


@pytest.mark.parametrize("label", [UNLABELLED, VOID, 0])
def test_labels_of_one_kind_alone(label: int) -> None:
    """Nothing labelled, nothing that takes part, nothing but background: losses and gradients stay finite."""
    model, batch = network(**ALL_LOSSES).train(), batch_of(2)
    batch["labels"].fill_(label)
    batch["tags"].zero_()
    losses = means(model.losses(batch), model.counts(batch))
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    if label != 0:
        assert losses["annotation"] == losses["cross_entropy"] == 0
    if label == VOID:
        assert sum(losses.values()) == 0


def test_labels_of_no_class_are_named() -> None:
    batch = batch_of(2)
    batch["labels"][0, 0, 0] = 7
    with pytest.raises(WeaksegError, match="7"):
        network().losses(batch)


def test_tags_are_those_of_the_labels_or_of_the_image() -> None:
    item = {"labels": np.array([[0, 2], [UNLABELLED, VOID]], np.uint8), "tags": np.array([1, 1], np.float32)}
    assert SPML.prepare_image(SPML.Settings(), item)["tags"].tolist() == [0, 1]
    assert SPML.prepare_image(SPML.Settings(tags="image"), item)["tags"].tolist() == [1, 1]


def test_the_pyramid_head_asks_for_more_than_one_image() -> None:
    with pytest.raises(WeaksegError, match="batch_size"):
        network(head="pspnet").train().losses(batch_of(1))


def test_one_image_of_one_cell_has_no_statistics() -> None:
    with pytest.raises(WeaksegError, match="batch_size"):
        network().train().losses(batch_of(1, side=8))
    assert total(network(norm="fixed").train(), batch_of(1, side=8)).isfinite()


def test_254_classes_leave_no_label_for_unlabelled_pixels() -> None:
    with pytest.raises(WeaksegError, match="253"):
        SPML(SPML.Settings(backbone=BACKBONE), 254)


# Training -------------------------------------------------------------------------------------------------------------


def train(model: SPML, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    for update in range(first, last):
        optimiser.zero_grad()
        total(model.train(), batch_of(2, update)).backward()
        optimiser.step()
        model.end_update()


def test_training_goes_on_from_a_checkpoint_to_the_last_bit(tmp_path: Path) -> None:
    rule = TrainSettings(steps=5, optimiser="caffe_sgd", lr=0.01)

    def made() -> tuple[SPML, torch.optim.Optimizer]:
        model = network(memory=2, **ALL_LOSSES)
        return model, build_optimiser(rule, model.param_groups(rule.lr))

    whole, optimiser = made()
    train(whole, optimiser, 0, 5)
    cut, optimiser = made()
    train(cut, optimiser, 0, 3)
    save_checkpoint(tmp_path / "checkpoint", cut, optimiser, 3)
    again, optimiser = made()
    assert load_checkpoint(tmp_path / "checkpoint", again, optimiser) == 3
    assert len(again.memory.entries) == 2
    train(again, optimiser, 3, 5)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    for name, tensor in whole.training_state().items():
        assert torch.equal(again.training_state()[name], tensor), name


def test_the_memory_changes_what_is_learned_and_is_not_learned_through() -> None:
    model = network(memory=1)
    model.train()
    first = total(model, batch_of(2))
    model.end_update()
    assert not any(rows.requires_grad for rows in model.memory.entries[0])
    assert total(model, batch_of(2)) != first


def test_a_classifier_learns_on_an_embedding_that_stays() -> None:
    embedding = network().train()
    total(embedding, batch_of(2)).backward()  # its statistics are no longer those it began with
    model = SPMLClassifier(SPMLClassifier.Settings(backbone=BACKBONE, dimensions=8), 2)
    model.start_from(embedding)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in embedding.state_dict().items():
        assert torch.equal(before[name], tensor) or name.startswith("classifier."), name
    assert not torch.equal(before["classifier.0.weight"], embedding.state_dict()["classifier.0.weight"])
    optimiser = build_optimiser(TrainSettings(steps=1, lr=0.1), model.param_groups(0.1))
    total(model.train(), known(batch_of(2))).backward()
    optimiser.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor) == (not name.startswith("classifier.")), name


def two_updates(rank: int, world: int) -> dict[str, Tensor]:
    """The losses and gradients of a training as its loop finds them, and the buffers it ends with."""
    model = network(memory=1, **ALL_LOSSES).train()
    found = {}
    for update in range(2):
        batch = {name: values[rank::world] for name, values in batch_of(4, update).items()}
        counts = {name: parallel.sum_tensor(count) for name, count in model.counts(batch).items()}
        losses = means(model.losses(batch), counts, world)
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        model.end_update()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name, value in {**losses, **gradients}.items():
            assert value is not None
            found[f"{update}.{name}"] = parallel.sum_tensor(value.detach().clone()) / world
    return found | {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}


TWO = """
import sys
import torch
from torch import distributed

folder, rank = sys.argv[1], int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from test_spml import two_updates

distributed.init_process_group("gloo", store=distributed.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
torch.save(two_updates(rank, 2), f"{folder}/{rank}")
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO, str(tmp_path)]
    jobs = [subprocess.Popen([*command, str(rank), str(Path(__file__).parent)]) for rank in range(2)]
    one = two_updates(0, 1)
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    for rank in range(2):
        two = torch.load(tmp_path / str(rank), weights_only=True)
        assert two.keys() == one.keys()
        for name, expected in one.items():
            scale = expected.abs().max().clamp(min=1e-3).item()
            assert (two[name] - expected).abs().max() <= 2e-4 * scale, name
