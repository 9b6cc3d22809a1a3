"""The training loop: order of images, schedule, exact resume, accumulation, bad settings."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from weakseg.data.loading import Batches, Draw, Order
from weakseg.errors import WeaksegError
from weakseg.labels import VOID
from weakseg.methods.affinitynet import AffinityNet
from weakseg.methods.base import Batch, Method
from weakseg.methods.deeplab import DeepLab
from weakseg.methods.irnet import IRNet
from weakseg.models.registry import BackboneSettings
from weakseg.optimisation import TrainSettings
from weakseg.runtime import RuntimeSettings, start
from weakseg.settings import Settings, validate
from weakseg.training import CHECKPOINT_NAME, LOG_NAME, train_network


class Line(Method):
    """y = w · x + b with dropout, so that randomness inside the network is part of what must be repeatable."""

    def __init__(self) -> None:
        super().__init__(Settings())
        torch.manual_seed(1)
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            self.seen += len(batch["image"])
        predicted = self.linear(self.dropout(batch["image"].mean((2, 3))))
        return {"square": (predicted.squeeze(1) - batch["target"]).square().mean()}

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": [self.linear.weight], "lr": lr}, {"params": [self.linear.bias], "lr": 2 * lr}]


class Points(Dataset[dict[str, Tensor]]):
    """Twelve little images; `fails_at` interrupts the training at the given draw."""

    images_per_draw = 1

    def __init__(self, fails_at: tuple[int, int] | None = None) -> None:
        self.fails_at, self.drawn = fails_at, []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        if (draw.epoch, draw.place) == self.fails_at:
            raise KeyboardInterrupt
        self.drawn.append(draw)
        image = torch.full((3, 2, 2), float(draw.image)) * torch.tensor([1.0, 0.5, -0.2])[:, None, None] / 12
        return {"image": image, "target": torch.tensor(draw.image / 6.0)}


RUNTIME = RuntimeSettings(device="cpu", checkpoint_steps=2)
SETTINGS = TrainSettings(epochs=4, batch_size=4, lr=0.1)


def trained(folder: Path, settings: TrainSettings = SETTINGS, fails_at: tuple[int, int] | None = None) -> Line:
    network, fabric = Line(), start(RUNTIME)
    train_network(fabric, network, Points(fails_at), settings, RUNTIME, folder=folder, seed=5)
    return network


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_s"} for line in lines]


@pytest.mark.parametrize("fails_at", [(0, 5), (1, 3), (2, 9), (3, 11)])
def test_an_interrupted_training_ends_with_the_same_weights_and_log(tmp_path: Path, fails_at: tuple[int, int]) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", fails_at=fails_at)
    resumed = trained(tmp_path / "cut")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert [line["step"] for line in log_of(tmp_path / "cut")] == list(range(1, 13))


def test_a_resumed_training_does_not_begin_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, fails_at=(3, 0))
    assert (tmp_path / CHECKPOINT_NAME).exists()
    images = Points()
    train_network(start(RUNTIME), Line(), images, SETTINGS, RUNTIME, folder=tmp_path, seed=5)
    assert min(draw.epoch for draw in images.drawn) == 2


def test_a_damaged_checkpoint_is_told_and_not_trained_from(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, fails_at=(3, 0))
    checkpoint = tmp_path / CHECKPOINT_NAME
    whole = checkpoint.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[: len(whole) // 2], b"", bytes(100), whole.replace(b"network.", b"notwork.")]
    broken += [bytes(rng.integers(0, 256, 8, dtype=np.uint8)) + whole[8:]]
    for data in broken:
        checkpoint.write_bytes(data)
        with pytest.raises(WeaksegError, match=CHECKPOINT_NAME):
            trained(tmp_path)
    checkpoint.unlink()
    trained(tmp_path)
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 13))


def test_a_damaged_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, fails_at=(3, 0))
    log = tmp_path / LOG_NAME
    log.write_bytes(log.read_bytes().replace(b'{"step"', b'{"st\xffp"', 1))
    with pytest.raises(WeaksegError, match=LOG_NAME):
        trained(tmp_path)


class Remembering(Line):
    """Its loss warms up, and looks back at what it predicted in all updates before."""

    def __init__(self) -> None:
        super().__init__()
        self.warmth, self.predicted, self.memories = 0.0, torch.zeros(()), torch.zeros(0)

    def begin_update(self, update: int, updates: int) -> None:
        self.warmth = (update + 1) / updates

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        mean = self.linear(batch["image"].mean((2, 3))).mean()
        self.predicted = mean.detach()
        return {**super().losses(batch), "memory": self.warmth * (mean - self.memories).square().sum()}

    def end_update(self) -> None:
        self.memories = torch.cat([self.memories, self.predicted[None]])

    def training_state(self) -> dict[str, Tensor]:
        return {"memories": self.memories}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        self.memories = state["memories"]


@pytest.mark.parametrize("fails_at", [(0, 5), (2, 9)])
def test_what_a_method_remembers_outlives_an_interruption(tmp_path: Path, fails_at: tuple[int, int]) -> None:
    def remembering(folder: str, fails_at: tuple[int, int] | None = None) -> Remembering:
        network, images = Remembering(), Points(fails_at)
        train_network(start(RUNTIME), network, images, SETTINGS, RUNTIME, folder=tmp_path / folder, seed=5)
        return network

    whole = remembering("whole")
    assert len(whole.memories) == 12
    with pytest.raises(KeyboardInterrupt):
        remembering("cut", fails_at)
    resumed = remembering("cut")
    assert torch.equal(resumed.memories, whole.memories)
    assert torch.equal(resumed.linear.weight, whole.linear.weight)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


class Stopping(Points):
    """The user stops the training while the given draw is made."""

    def __init__(self, stopped_at: tuple[int, int]) -> None:
        super().__init__()
        self.stopped_at = stopped_at

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        if (draw.epoch, draw.place) == self.stopped_at:
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(draw)


@pytest.mark.parametrize("stopped_at", [(0, 0), (1, 6), (3, 11)], ids=["first update", "another", "last update"])
def test_ctrl_c_finishes_the_update_and_keeps_it(tmp_path: Path, stopped_at: tuple[int, int]) -> None:
    seldom = RuntimeSettings(device="cpu", checkpoint_minutes=60)
    network, handler = Line(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_network(start(seldom), network, Stopping(stopped_at), SETTINGS, seldom, folder=tmp_path / "cut", seed=5)
    assert signal.getsignal(signal.SIGINT) is handler
    updates = 3 * stopped_at[0] + stopped_at[1] // 4 + 1
    assert len(log_of(tmp_path / "cut")) == updates
    images = Points()
    network = Line()
    train_network(start(seldom), network, images, SETTINGS, seldom, folder=tmp_path / "cut", seed=5)
    assert len(images.drawn) == 48 - 4 * updates, "nothing is done twice"
    assert torch.equal(network.linear.weight, trained(tmp_path / "whole").linear.weight)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_accumulation_changes_the_weights_by_rounding_only(tmp_path: Path) -> None:
    def without_dropout(folder: str, settings: TrainSettings) -> Line:
        network = Line()
        network.dropout.p = 0.0
        train_network(start(RUNTIME), network, Points(), settings, RUNTIME, folder=tmp_path / folder, seed=5)
        return network

    one = without_dropout("one", SETTINGS)
    two = without_dropout("two", SETTINGS.model_copy(update={"accumulate": 2}))
    torch.testing.assert_close(one.linear.weight, two.linear.weight, rtol=1e-5, atol=1e-6)


class Labelled(Points):
    """Noise with a label for each cell of so many pixels; ever more are void, in the last image all."""

    def __init__(self, side: int = 32, stride: int = 1) -> None:
        super().__init__()
        self.side, self.cells = side, side // stride

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(draw.image)
        labels = torch.randint(0, 3, (self.cells, self.cells), generator=generator).to(torch.uint8)
        labels[torch.rand(labels.shape, generator=generator) < draw.image / 11] = VOID
        return {"image": torch.randn(3, self.side, self.side, generator=generator), "labels": labels}


RESNET = BackboneSettings(name="resnet18", output_stride=16, weights=None)
SMALL = BackboneSettings(name="small", output_stride=8, weights=None)


@pytest.mark.parametrize(
    ("build", "images"),
    [
        (lambda: DeepLab(DeepLab.Settings(backbone=RESNET, rates=(1, 2)), 2), Labelled()),
        (lambda: DeepLab(DeepLab.Settings(backbone=RESNET, multi_scale=True, rates=(1, 2)), 2), Labelled()),
        (lambda: AffinityNet(AffinityNet.Settings(backbone=SMALL), 2), Labelled(96, 8)),
        (lambda: IRNet(IRNet.Settings(backbone=SMALL, radius=3), 2), Labelled(48, 4)),
    ],
    ids=["pixels", "pixels at several scales", "AffinityNet's pairs", "IRNet's pairs"],
)
def test_micro_batches_of_unequally_many_labels_teach_what_the_whole_batch_does(
    tmp_path: Path, build: Callable[[], Method], images: Labelled
) -> None:
    def weights(accumulate: int) -> dict[str, Tensor]:
        torch.manual_seed(3)
        network = build()
        settings = TrainSettings(steps=2, batch_size=4, lr=1e-4, accumulate=accumulate)
        folder = tmp_path / str(accumulate)
        train_network(start(RUNTIME), network, images, settings, RUNTIME, folder=folder, seed=5)
        return network.state_dict()

    def terms(accumulate: int) -> list[float]:
        return [value for line in log_of(tmp_path / str(accumulate)) for value in line.values()]

    whole = weights(1)
    assert len(set(terms(1))) > 5, "the losses are not all the same"
    for accumulate in (2, 4):
        for name, value in weights(accumulate).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6, msg=name)
        assert terms(accumulate) == pytest.approx(terms(1), rel=1e-5)


def test_learning_rates_follow_the_poly_schedule(tmp_path: Path) -> None:
    trained(tmp_path)
    rates = [line["lr"] for line in log_of(tmp_path)]
    assert rates == pytest.approx([0.1 * (1 - step / 12) ** 0.9 for step in range(12)])


def test_clipping_bounds_each_step(tmp_path: Path) -> None:
    settings = TrainSettings(steps=1, batch_size=4, lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3)
    network = trained(tmp_path, settings)
    start_weight = Line().linear.weight
    assert 0 < (network.linear.weight - start_weight).norm() <= 1.001e-3


def test_a_loss_that_explodes_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"update \d+: the \w+ became \w+\. .*train\.lr"):
        trained(tmp_path, TrainSettings(steps=200, batch_size=4, lr=1e8))


class Steep(Line):
    """Loss and gradient are finite; a large step along it is not."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return {"slope": 1e10 * self.linear.weight.sum()}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_explodes_changes_nothing_and_says_what_to_do(tmp_path: Path, clip_norm: float | None) -> None:
    class Cliff(Line):
        """The loss is finite, its gradient is not."""

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {"root": (0 * self.linear.weight).sum().sqrt()}

    settings = TrainSettings(steps=5, batch_size=4, lr=0.1, clip_norm=clip_norm)
    network = Cliff()
    with pytest.raises(WeaksegError, match=r"training, update 1: the gradient became nan\. Lower .*train\.lr"):
        train_network(start(RUNTIME), network, Points(), settings, RUNTIME, folder=tmp_path, seed=5)
    assert torch.equal(network.linear.weight, Line().linear.weight)


def test_a_step_into_the_infinite_is_not_kept(tmp_path: Path) -> None:
    settings = TrainSettings(steps=3, batch_size=4, lr=1e38, momentum=0.0)
    runtime = RuntimeSettings(device="cpu", checkpoint_steps=1)
    with pytest.raises(WeaksegError, match=r"training, update 1: linear\.\w+ is not finite any more.*train\.lr"):
        train_network(start(runtime), Steep(), Points(), settings, runtime, folder=tmp_path / "a", seed=5)
    assert not (tmp_path / "a" / CHECKPOINT_NAME).exists()
    once = settings.model_copy(update={"steps": 1})
    with pytest.raises(WeaksegError, match=r"training, the last update: linear\.\w+ is not finite any more"):
        train_network(start(runtime), Steep(), Points(), once, runtime, folder=tmp_path / "b", seed=5)


class Damaged(Points):
    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        raise WeaksegError("photo.jpg is damaged.\nMend it.")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_told_without_a_traceback(tmp_path: Path, workers: int) -> None:
    runtime = RuntimeSettings(device="cpu", workers=workers)
    with pytest.raises(WeaksegError) as caught:
        train_network(start(runtime), Line(), Damaged(), SETTINGS, runtime, folder=tmp_path, seed=5)
    assert str(caught.value) == "photo.jpg is damaged.\nMend it."


@given(count=st.integers(1, 50), batch_size=st.integers(1, 20), epoch=st.integers(0, 3), seed=st.integers(0, 99))
def test_every_epoch_draws_its_images_equally_often(count: int, batch_size: int, epoch: int, seed: int) -> None:
    order = Order(count, batch_size, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    drawn = [draw for step in steps for draw in order.batch(step)]
    assert all(draw.epoch == epoch for draw in drawn)
    assert len(drawn) == order.steps_per_epoch * batch_size
    times = [sum(draw.image == index for draw in drawn) for index in range(count)]
    if count >= 10 * batch_size:
        assert max(times) == 1
        assert times.count(0) == count % batch_size
    else:
        assert max(times) - min(times) <= 1
        assert times.count(0) == 0
        assert count < batch_size or all(
            len({draw.image for draw in order.batch(step)}) == batch_size for step in steps
        )


@given(world=st.sampled_from([1, 2, 3]), accumulate=st.sampled_from([1, 2]), first=st.integers(0, 5))
def test_processes_and_micro_batches_share_each_batch(world: int, accumulate: int, first: int) -> None:
    order = Order(30, 12, 0)
    parts = [list(Batches(order, first, 6, accumulate=accumulate, rank=rank, world=world)) for rank in range(world)]
    for step in range(first, 6):
        start_ = (step - first) * accumulate
        drawn = [draw for part in parts for micro in part[start_ : start_ + accumulate] for draw in micro]
        assert sorted(drawn) == sorted(order.batch(step))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(WeaksegError, match="A batch of 10 images cannot be shared equally by 4 processes"):
        Batches(Order(30, 10, 0), 0, 1, world=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either epochs or steps"),
        ({"epochs": 1, "steps": 2}, "give either epochs or steps"),
        ({"epochs": 1, "momentun": 0.5}, 'cam.train.momentun: unknown setting. Did you mean "momentum"?'),
        ({"epochs": "many"}, "cam.train.epochs: expected a number.*many"),
        ({"epochs": 1, "precision": "fp16"}, "cam.train.precision: expected fp32 or bf16"),
    ],
)
def test_wrong_settings_name_the_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        validate(TrainSettings, values, "cam.train")


def test_cuda_without_a_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(WeaksegError, match="sees no CUDA device"):
        start(RuntimeSettings(device="cuda"))
