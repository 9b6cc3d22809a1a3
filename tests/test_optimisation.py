"""How weights are updated: the optimisers by their recurrences, the learning rate over the time of a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, AdamW

from weakseg.data.loading import Order
from weakseg.errors import WeaksegError
from weakseg.optimisation import CaffeSGD, TrainSettings, build_optimiser
from weakseg.settings import validate

momenta, decays = st.floats(0, 0.99), st.floats(0, 0.1)
rates = st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=8)


def updated(kind: type[Any], rates: list[float], momentum: float, weight_decay: float) -> torch.Tensor:
    """A weight after an update with each of the rates; the gradients are the same for all."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    optimiser = kind([weight], lr=rates[0], momentum=momentum, weight_decay=weight_decay)
    for rate in rates:
        optimiser.param_groups[0]["lr"] = rate
        weight.grad = torch.randn(5, generator=generator, dtype=torch.float64)
        optimiser.step()
    return weight.detach()


@given(rate=st.floats(1e-3, 0.5), count=st.integers(1, 8), momentum=momenta, weight_decay=decays)
def test_at_one_rate_caffes_sgd_is_that_of_torch(rate: float, count: int, momentum: float, weight_decay: float) -> None:
    ours, theirs = (updated(kind, [rate] * count, momentum, weight_decay) for kind in (CaffeSGD, SGD))
    torch.testing.assert_close(ours, theirs)


@given(rates=rates, momentum=momenta, weight_decay=decays)
def test_caffes_momentum_keeps_the_rate_of_each_gradient(
    rates: list[float], momentum: float, weight_decay: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, generator=generator, dtype=torch.float64).tolist()
    velocities = [0.0] * 5
    for rate in rates:
        gradients = torch.randn(5, generator=generator, dtype=torch.float64).tolist()
        for k in range(5):
            velocities[k] = momentum * velocities[k] + rate * (gradients[k] + weight_decay * weights[k])
            weights[k] -= velocities[k]
    expected = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(updated(CaffeSGD, rates, momentum, weight_decay), expected)


def test_the_two_kinds_of_momentum_differ_after_the_rate_has_changed() -> None:
    ours, theirs = (updated(kind, [0.5, 0.05, 0.05], 0.9, 0) for kind in (CaffeSGD, SGD))
    assert (ours - theirs).abs().min() > 1e-3


def test_weights_without_a_gradient_stay() -> None:
    weight, other = (torch.ones(2).requires_grad_() for _ in range(2))
    optimiser = CaffeSGD([weight, other], lr=0.1, momentum=0.9, weight_decay=0.5)
    other.grad = torch.ones(2)
    optimiser.step()
    assert weight.tolist() == [1, 1]
    assert other.tolist() == pytest.approx([0.85, 0.85])


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("caffe_sgd", CaffeSGD), ("adamw", AdamW)])
def test_groups_keep_what_is_their_own(name: Any, kind: type[Any]) -> None:
    settings = TrainSettings(steps=1, optimiser=name, lr=0.25, momentum=0.5, weight_decay=0.125)
    weight, bias = (torch.ones(2).requires_grad_() for _ in range(2))
    groups = [{"params": [weight], "lr": 0.25}, {"params": [bias], "lr": 0.5, "weight_decay": 0.0}]
    optimiser = build_optimiser(settings, groups)
    assert type(optimiser) is kind
    assert [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups] == [(0.25, 0.125), (0.5, 0)]
    assert all(group.get("momentum", 0.5) == 0.5 for group in optimiser.param_groups)
    (weight.sum() + bias.sum()).backward()
    optimiser.step()
    assert (weight < 1).all()
    assert (bias < 1).all()


# The learning rate ----------------------------------------------------------------------------------------------------


def factors(steps: int, per_epoch: int = 1, **settings: Any) -> list[float]:
    """What the learning rate is multiplied with in every update."""
    chosen = TrainSettings(steps=steps, **settings)
    return [chosen.rate_factor(step, steps, per_epoch) for step in range(steps)]


@given(steps=st.integers(1, 60), power=st.floats(0, 3))
def test_poly(steps: int, power: float) -> None:
    assert factors(steps, power=power) == pytest.approx([(1 - step / steps) ** power for step in range(steps)])


def test_poly_in_steps_of_some_updates_or_an_epoch() -> None:
    expected = [(1 - start / 9) ** 0.9 for start in (0, 0, 0, 0, 4, 4, 4, 4, 8)]
    assert factors(9, lr_every=4) == pytest.approx(expected)
    assert factors(9, per_epoch=4, lr_every="epoch") == pytest.approx(expected)


@pytest.mark.parametrize(("share", "falling"), [(0.5, 10), (0.33, 7), (0.01, 1), (1.0, 20)])
def test_poly_falls_in_a_part_of_the_training(share: float, falling: int) -> None:
    found = factors(20, falls_until=share)
    assert found[:falling] == pytest.approx([(1 - step / falling) ** 0.9 for step in range(falling)])
    assert found[falling:] == pytest.approx([(1 / falling) ** 0.9] * (20 - falling))


def test_step_drops_at_parts_of_the_training() -> None:
    found = factors(10, schedule="step", drops=(0.5, 0.75), drop_factor=0.2)
    assert found == pytest.approx([1] * 5 + [0.2] * 3 + [0.04] * 2)  # 7.5 is rounded half to even
    assert factors(3, schedule="step") == [1, 1, 1]


def test_constant() -> None:
    assert factors(7, schedule="constant", falls_until=0.5, drops=(0.5,)) == [1] * 7


def test_the_warm_up_rises_to_the_rate_of_the_schedule() -> None:
    constant = factors(6, schedule="constant", warmup_steps=4, warmup_from=0.2)
    assert constant == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    falling = factors(10, power=1, warmup_steps=8, warmup_from=0)
    assert falling == pytest.approx([min(step / 8, 1 - step / 10) if step < 8 else 1 - step / 10 for step in range(10)])


@given(
    steps=st.integers(1, 50),
    per_epoch=st.integers(1, 20),
    schedule=st.sampled_from(["poly", "step", "constant"]),
    share=st.floats(0.01, 1),
    warmup=st.integers(0, 60),
)
def test_no_rate_is_above_that_of_the_settings(
    steps: int, per_epoch: int, schedule: str, share: float, warmup: int
) -> None:
    found = factors(
        steps, per_epoch, schedule=schedule, falls_until=share, drops=(share,), lr_every="epoch", warmup_steps=warmup
    )
    assert all(0 < factor <= 1 for factor in found)


def test_epochs_are_counted_in_updates() -> None:
    order = Order(count=10, batch_size=4, seed=0)
    assert TrainSettings(epochs=3).total_steps(order) == 9
    assert TrainSettings(epochs=3, min_steps=20).total_steps(order) == 20
    assert TrainSettings(epochs=3, min_steps=4).total_steps(order) == 9
    assert TrainSettings(steps=5, min_steps=20).total_steps(order) == 5
    assert TrainSettings(epochs=0.01).total_steps(order) == 1
    assert TrainSettings(steps=5).total_steps(order) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "epochs or steps"),
        ({"epochs": 1, "steps": 1}, "epochs or steps"),
        ({"steps": 1, "lr_every": 0}, "lr_every"),
        ({"steps": 1, "lr_every": "year"}, "lr_every"),
        ({"steps": 1, "falls_until": 0}, "falls_until"),
        ({"steps": 1, "schedule": "step", "drops": [1.5]}, "drops"),
        ({"steps": 1, "optimiser": "adam"}, "optimiser"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError, match=message):
        validate(TrainSettings, values, "train")
