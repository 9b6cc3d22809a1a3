"""A refiner: maps become a learned mixture of themselves and of their blurred version, with a running mean of what it
saw and a warm-up of its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from weakseg.methods import base
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.fields import ImageField


class Blurring(base.Refiner):
    class Settings(base.Settings):
        side: int = Field(default=5, ge=1, description="of the window, cells")

    class Options(base.Settings):
        power: float = Field(default=1.0, gt=0, description="of the result")

    fields: ClassVar[Mapping[str, ImageField]] = {"best": ImageField("maps")}

    def __init__(self, settings: Settings, num_classes: int, *, load_weights: bool = True) -> None:
        super().__init__(settings)
        self.mixture = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.warmth, self.bank = 0.0, torch.zeros(0)

    @staticmethod
    def evidence(settings: Settings, image: base.Image, maps: ActivationMaps) -> dict[str, npt.NDArray[Any]]:
        return {"best": maps.upsampled().max(0, keepdims=True, initial=0).astype(np.float16)}

    def begin_update(self, update: int, updates: int) -> None:
        self.warmth = (update + 1) / updates

    def losses(self, batch: base.Batch) -> dict[str, Tensor]:
        best = batch["best"]
        self.seen += 0.1 * (best.mean() - self.seen)
        self.latest = best.mean().detach()
        return {"change": self.warmth * (self.spread(best) - best).square().mean() - 0.01 * self.mixture}

    def end_update(self) -> None:
        self.bank = torch.cat([self.bank, self.latest[None].cpu()])[-3:]

    def training_state(self) -> dict[str, Tensor]:
        return {"bank": self.bank}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        self.bank = state["bank"]

    def spread(self, maps: Tensor) -> Tensor:
        side, share = self.settings.side | 1, torch.sigmoid(self.mixture)
        blurred = F.avg_pool2d(maps, side, 1, side // 2)
        return share * blurred + (1 - share) * maps

    @torch.no_grad()
    def refine(self, image: base.Image, maps: ActivationMaps, options: Options, device: torch.device) -> ActivationMaps:
        spread = self.spread(torch.from_numpy(maps.maps.astype(np.float32))[None].to(device))[0] ** options.power
        return ActivationMaps(maps.labels, spread.clamp(0, 1).cpu().numpy(), maps.size, maps.stride)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        return [{"params": [self.mixture], "lr": lr}]


REFINER = Blurring
