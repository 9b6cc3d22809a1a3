"""Learning rates of the parts of a network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def caffe_param_groups(
    network: nn.Module, new_layers: Iterable[nn.Module], lr: float, new_factor: float = 10.0
) -> list[dict[str, Any]]:
    """Four groups for an optimiser, as networks trained in Caffe have them and, after them, AffinityNet and SEAM.

    | group | members                  | learning rate       | weight decay  |
    |-------|--------------------------|---------------------|---------------|
    | 0     | weights of old layers    | lr                  | the recipe's  |
    | 1     | biases of old layers     | 2 · lr              | 0             |
    | 2     | weights of `new_layers`  | new_factor · lr     | the recipe's  |
    | 3     | biases of `new_layers`   | 2 · new_factor · lr | 0             |

    `new_layers` are modules of `network` (with all they contain). Batch normalisation is in no group, nor is what
    does not learn (`requires_grad`); a group may be empty.
    """
    new = {id(parameter) for layer in new_layers for parameter in layer.parameters()}
    members: list[list[nn.Parameter]] = [[], [], [], []]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                members[2 * (id(parameter) in new) + (name == "bias")].append(parameter)
    return [
        {"params": members[0], "lr": lr},
        {"params": members[1], "lr": 2 * lr, "weight_decay": 0.0},
        {"params": members[2], "lr": new_factor * lr},
        {"params": members[3], "lr": 2 * new_factor * lr, "weight_decay": 0.0},
    ]
