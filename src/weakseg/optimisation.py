"""How weights are updated: the optimiser, and the learning rate over the time of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch.optim import SGD, AdamW, Optimizer

from weakseg.ops.schedule import poly_factor
from weakseg.settings import Settings

if TYPE_CHECKING:
    from weakseg.data.loading import Order

Share = Annotated[float, Field(gt=0, le=1)]


class TrainSettings(Settings):
    """How a network is trained. Give either `epochs` or `steps`."""

    epochs: float | None = Field(default=None, gt=0, description="passes over the training images")
    steps: int | None = Field(default=None, gt=0, description="updates of the weights")
    min_steps: int | None = Field(
        default=None,
        gt=0,
        description="updates that the training needs: of few images, more epochs are made until there are so many; "
        "null: the epochs as they are",
    )
    batch_size: int = Field(default=16, gt=0, description="images per update, over all processes and micro-batches")
    accumulate: int = Field(
        default=1, gt=0, description="micro-batches per update, for less memory; the result is that of the whole batch"
    )
    optimiser: Literal["sgd", "caffe_sgd", "adamw"] = Field(
        default="sgd",
        description="caffe_sgd: SGD as Caffe and MXNet have it, with the learning rate inside of the momentum",
    )
    lr: float = Field(default=0.01, gt=0, description="learning rate of the first update after the warm-up")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(default=1e-4, ge=0, description="part of the weights that is added to their gradient")
    schedule: Literal["poly", "step", "constant"] = Field(
        default="poly", description="poly: lr · (1 - step/steps)^power; step: drops at certain times"
    )
    power: float = Field(default=0.9, ge=0, description="of the poly schedule")
    lr_every: int | Literal["epoch"] = Field(
        default=1, description="updates between two changes of the learning rate of the poly schedule, or epoch"
    )
    falls_until: Share = Field(
        default=1.0, description="part of the training in which the poly schedule falls to its end; then the rate stays"
    )
    drops: tuple[Share, ...] = Field(
        default=(), description="parts of the training after which the rate of the step schedule drops"
    )
    drop_factor: float = Field(default=0.1, gt=0, description="what the rate is multiplied with at each drop")
    warmup_steps: int = Field(default=0, ge=0, description="updates in which the rate rises to that of the schedule")
    warmup_from: float = Field(default=0.1, ge=0, le=1, description="part of lr that the warm-up begins with")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the whole gradient; null: any")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: less memory, faster on recent GPUs")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, and null for the other")
        if self.lr_every != "epoch" and self.lr_every < 1:
            raise ValueError(f"lr_every counts updates, from 1 on, or is epoch; found {self.lr_every}")
        return self

    def order(self, count: int, seed: int, images_per_draw: int = 1) -> Order:
        """The order of so many images, each of which makes `images_per_draw` of a batch."""
        from weakseg.data.loading import Order

        return Order(count, max(1, self.batch_size // images_per_draw), seed)

    def total_steps(self, order: Order) -> int:
        """The number of updates for a data set."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(self.min_steps or 1, round(self.epochs * order.steps_per_epoch))

    def rate_factor(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """What the learning rates are multiplied with in update `step` (0 … steps - 1) of `steps`."""
        factor = 1.0
        if self.schedule == "poly":
            every = steps_per_epoch if self.lr_every == "epoch" else self.lr_every
            factor = poly_factor(step, max(1, round(self.falls_until * steps)), self.power, every)
        elif self.schedule == "step":
            factor = self.drop_factor ** sum(step >= round(drop * steps) for drop in self.drops)
        if step < self.warmup_steps:
            risen = step / self.warmup_steps
            factor = min(factor, self.warmup_from * (1 - risen) + risen)
        return factor


class CaffeSGD(Optimizer):
    """v ← μ v + η (g + λ w), w ← w - v: the learning rate η is a part of what the momentum μ keeps, as in Caffe (Jia et
    al. 2014, arXiv 1408.5093) and MXNet. PyTorch's SGD differs from it for some updates after each change of η."""

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the weights once."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                velocity = state["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(
                    weight.grad.add(weight, alpha=group["weight_decay"]), alpha=group["lr"]
                )
                weight.sub_(velocity)


def build_optimiser(settings: TrainSettings, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of the settings for groups of parameters (`methods.base.Method.param_groups`)."""
    if settings.optimiser == "adamw":
        return AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    kind = CaffeSGD if settings.optimiser == "caffe_sgd" else SGD
    return kind(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
