"""Fixed batch normalisation, and the initialisation that goes with it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from weakseg import parallel


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that always uses its running statistics and never updates them, in training too.

    Weakly supervised methods train with few images a step, from which no statistics can be estimated. The scale
    and the shift stay trainable. The names of the state are those of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics, in training, are those of the batches of all processes.

    Unlike PyTorch's own it also works on a CPU, and for processes whose batches are of different sizes. The statistics
    of parts are put together as in Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.is_meta or parallel.world_size() == 1:
            return super().forward(input)
        variances, means = torch.var_mean(input.float(), dim=(0, 2, 3), correction=0)
        count = input.numel() // input.shape[1]
        counts = torch.tensor(parallel.gather(count), device=input.device, dtype=means.dtype)
        ones = [1] * parallel.world_size()
        all_means, all_variances = (parallel.gather_rows(values[None], ones) for values in (means, variances))
        weights = (counts / counts.sum())[:, None]
        mean = (weights * all_means).sum(0)
        variance = (weights * (all_variances + (all_means - mean).square())).sum(0)
        self._note(mean, variance, int(counts.sum()))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (input * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)


def use_batch_statistics(network: nn.Module, momentum: float, kind: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> None:
    """Replace every `FixedBatchNorm2d` in `network` by batch normalisation of a `kind` with the same state: in training
    it uses, and learns with `momentum`, the statistics of the batch."""
    for module in list(network.modules()):
        for name, fixed in list(module.named_children()):
            if isinstance(fixed, FixedBatchNorm2d):
                norm = kind(fixed.num_features, fixed.eps, momentum)
                norm.load_state_dict(fixed.state_dict())
                for parameter, old in zip(norm.parameters(), fixed.parameters(), strict=True):
                    parameter.requires_grad_(old.requires_grad)
                setattr(module, name, norm)


def closing_norm(channels: int) -> FixedBatchNorm2d:
    """The last normalisation of a residual branch, with scale 0, so that a new block starts as the identity.

    Without statistics of the batch, a sum of many random residuals would grow from block to block. (Goyal et al.
    2017, "Accurate, Large Minibatch SGD", section 5.1.)
    """
    norm = FixedBatchNorm2d(channels)
    nn.init.zeros_(norm.weight)
    return norm


def fold_norms(network: nn.Module) -> None:
    """Make fixed batch normalisation part of the convolution before it, for inference: the same up to rounding, without
    a pass over the features and a copy of them for each.

    In all our networks, a normalisation that is registered right after a convolution takes its output, and nothing
    else does. The network must be in evaluation mode; it can neither be trained nor be saved afterwards.
    """
    for module in list(network.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            # What a hook adds to a convolution comes before the normalisation.
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FixedBatchNorm2d) and not conv._forward_hooks:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())


def initialise(network: nn.Module) -> None:
    """Kaiming initialisation of all convolutions (He et al. 2015, eq. 10).

    The mode is `fan_in`: fixed statistics do not rescale the signal, so the forward pass has to keep its variance.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
