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
    named = (
        pair
        for module in network.modules()
        if not isinstance(module, nn.BatchNorm2d)
        for pair in module.named_parameters(recurse=False)
    )
    return four_groups(named, new_layers, lr, new_factor=new_factor, bias_factor=2)


def four_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    new_layers: Iterable[nn.Module],
    lr: float,
    *,
    new_factor: float,
    bias_factor: float,
) -> list[dict[str, Any]]:
    """Of parameters with their names, those that learn: weights and biases of old layers, then of `new_layers` at
    `new_factor` times the rate. Biases learn at `bias_factor` times the rate of their layer and do not decay."""
    new = {id(parameter) for layer in new_layers for parameter in layer.parameters()}
    members: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in named:
        if parameter.requires_grad:
            members[2 * (id(parameter) in new) + (name.rpartition(".")[2] == "bias")].append(parameter)
    return [
        {"params": members[0], "lr": lr},
        {"params": members[1], "lr": bias_factor * lr, "weight_decay": 0.0},
        {"params": members[2], "lr": new_factor * lr},
        {"params": members[3], "lr": bias_factor * new_factor * lr, "weight_decay": 0.0},
    ]
