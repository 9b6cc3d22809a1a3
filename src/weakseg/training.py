"""One training loop for all methods: precision, devices, processes, schedule, checkpoints, exact resume, log.

A run that was killed goes on from its last checkpoint and ends with the same weights as one that was not: the
order of images and their augmentation are functions of (seed, epoch, place), everything else random is seeded
anew at every update, and the checkpoint holds weights, buffers and the optimiser's state.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from pydantic import Field, model_validator
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from weakseg import parallel
from weakseg.data.loading import Batches, Order
from weakseg.errors import WeaksegError
from weakseg.files import write_bytes, write_text
from weakseg.ops.schedule import poly_factor
from weakseg.progress import Progress
from weakseg.settings import Settings
from weakseg.threads import cpu_threads

LOG_NAME = "train.jsonl"
CHECKPOINT_NAME = "checkpoint.safetensors"


class TrainSettings(Settings):
    """How a network is trained: SGD with a poly schedule. Give either `epochs` or `steps`."""

    epochs: float | None = Field(default=None, gt=0, description="passes over the training images")
    steps: int | None = Field(default=None, gt=0, description="updates of the weights")
    batch_size: int = Field(default=16, gt=0, description="images per update, over all processes and micro-batches")
    accumulate: int = Field(
        default=1, gt=0, description="micro-batches per update, for less memory; the result is that of the whole batch"
    )
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    power: float = Field(default=0.9, ge=0, description="of the poly schedule lr · (1 - step/steps)^power")
    lr_every: int = Field(default=1, gt=0, description="updates between two changes of the learning rate")
    clip_norm: float | None = Field(default=None, gt=0, description="largest norm of the whole gradient")
    precision: Literal["fp32", "bf16"] = "fp32"

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, not both and not neither")
        return self

    def total_steps(self, order: Order) -> int:
        """The number of updates for a data set."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * order.steps_per_epoch))


class RuntimeSettings(Settings):
    """Where and how a run works, without influence on what comes out."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | Literal["auto"] = Field(
        default="auto", description="processes that load images; auto: none on a CPU"
    )
    checkpoint_minutes: float = Field(default=5.0, ge=0, description="time between two checkpoints")
    checkpoint_steps: int | None = Field(default=None, gt=0, description="updates between two checkpoints, besides")

    def loader_workers(self, device: torch.device) -> int:
        """Worker processes of a data loader. On a CPU the network already uses every core."""
        if self.workers != "auto":
            return self.workers
        return 0 if device.type == "cpu" else min(8, cpu_threads())


def start(runtime: RuntimeSettings) -> Fabric:
    """Take hold of the device and, under `torchrun`, of the other processes."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise WeaksegError("runtime.device is cuda, but this PyTorch sees no CUDA device. Use cpu or auto.")
    accelerator = "cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // processes
    distributed = "TORCHELASTIC_RUN_ID" in os.environ and processes * nodes > 1
    if accelerator == "cuda" and processes > torch.cuda.device_count():
        raise WeaksegError(
            f"{processes} processes were started on a machine with {torch.cuda.device_count()} CUDA devices. "
            "Give torchrun at most as many (--nproc-per-node), or set runtime.device=cpu."
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=processes,
        num_nodes=nodes,
        strategy="ddp" if distributed else "auto",
    )
    fabric.launch()
    return fabric


def train_network(
    fabric: Fabric,
    network: nn.Module,
    images: Dataset[dict[str, Tensor]],
    settings: TrainSettings,
    runtime: RuntimeSettings,
    *,
    folder: Path,
    seed: int,
    title: str = "training",
    decay: float = 1.0,
) -> None:
    """Train `network` (see `methods.base.Trainable`) in place.

    `folder` receives the log `train.jsonl` (one line per update: step, epoch, loss and its terms, lr, images_per_s)
    and checkpoints, from which the same call goes on. A data set that makes several images of each that is drawn says
    how many (`images_per_draw`), which all count in the batch size. The learning rate falls over the share `decay` of
    the updates, then it stays. The network ends on the CPU or GPU where it was trained.

    Raises `WeaksegError` if the loss, its gradient or the weights stop being finite; the checkpoint then is one of
    before.
    """
    assert isinstance(images, Sized)
    images_per_draw = getattr(images, "images_per_draw", 1)
    order = Order(len(images), max(1, settings.batch_size // images_per_draw), seed)
    batch_size = order.batch_size * images_per_draw
    steps = settings.total_steps(order)
    decay_steps = max(1, round(decay * steps))
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        network.param_groups(settings.lr),  # type: ignore[operator]
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    base_rates = [group["lr"] for group in optimiser.param_groups]
    checkpoint = folder / CHECKPOINT_NAME
    done = load_checkpoint(checkpoint, network, optimiser) if checkpoint.exists() else 0
    log = _Log(folder / LOG_NAME, done)
    network.train()
    counts = _Counts(network, settings.accumulate)
    module, fabric_optimiser = fabric.setup(network, optimiser)
    module.mark_forward_method("losses")
    batches = iter(
        DataLoader(
            images,
            batch_sampler=Batches(
                order,
                done,
                steps,
                accumulate=settings.accumulate,
                rank=parallel.rank(),
                world=parallel.world_size(),
            ),
            num_workers=runtime.loader_workers(fabric.device),
            pin_memory=fabric.device.type == "cuda",
        )
    )
    saved_at = time.monotonic()
    autocast = settings.precision == "bf16"
    with log, Progress(title, steps * batch_size, done=done * batch_size) as progress:
        for step in range(done, steps):
            factor = poly_factor(step, decay_steps, settings.power, settings.lr_every)
            for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
            parts = [_to_device(_next(batches), fabric.device) for _ in range(settings.accumulate)]
            with torch.autocast(fabric.device.type, torch.bfloat16, enabled=autocast):
                whole_batch = counts.of_update(parts)
            # Dropout and the like: a function of the update and the process, so a resumed run draws the same.
            torch.manual_seed((seed * 1_000_003 + step) * 4096 + parallel.rank())
            terms: dict[str, Tensor] = {}
            for part, batch in enumerate(parts):
                with (
                    fabric.no_backward_sync(module, enabled=part < settings.accumulate - 1),
                    torch.autocast(fabric.device.type, torch.bfloat16, enabled=autocast),
                    whole_batch(),
                ):
                    losses = module.losses(batch)
                    total = torch.stack(list(losses.values())).sum() / settings.accumulate
                fabric.backward(total)
                for name, value in losses.items():
                    terms[name] = terms.get(name, 0) + value.detach() / settings.accumulate
            learning = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
            values = _finite_means(fabric, terms, norm, f"{title}, update {step + 1}")
            if settings.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(learning, settings.clip_norm, norm)
            fabric_optimiser.step()
            progress.advance(batch_size, loss=values["loss"])
            epoch = step / order.steps_per_epoch
            log.write(step=step + 1, epoch=round(epoch, 4), **values, lr=optimiser.param_groups[0]["lr"],
                      images_per_s=round(progress.rate, 2))  # fmt: skip
            steps_due = runtime.checkpoint_steps and (step + 1) % runtime.checkpoint_steps == 0
            minutes_due = time.monotonic() - saved_at > 60 * runtime.checkpoint_minutes
            if (steps_due or minutes_due) and step + 1 < steps:
                _check_weights(network, f"{title}, update {step + 1}")
                if parallel.rank() == 0:
                    save_checkpoint(checkpoint, network, optimiser, step + 1)
                saved_at = time.monotonic()
    _check_weights(network, f"{title}, the last update")
    optimiser.zero_grad(set_to_none=True)


class _Counts:
    """What the means inside of a method's losses (`parallel.mean_over_ranks`) are over in a whole update.

    With micro-batches it has to be known before the first of them is learned from, so their losses are computed once
    more, without gradients; not for a method that has no such means.
    """

    def __init__(self, network: nn.Module, accumulate: int) -> None:
        self.network, self.needed = network, accumulate > 1

    def of_update(self, parts: Sequence[dict[str, Tensor]]) -> Callable[[], AbstractContextManager[None]]:
        """The surroundings in which to compute the losses of each of the update's micro-batches."""
        if not self.needed:
            return nullcontext
        self.network.eval()  # no running statistics are to be counted twice
        noted = [self._counts(part) for part in parts]
        self.network.train()
        self.needed = bool(noted[0])
        counts = [torch.stack(of_call).sum(0) for of_call in zip(*noted, strict=True)]
        return partial(parallel.dividing_by, counts, len(parts)) if counts else nullcontext

    @torch.no_grad()
    def _counts(self, batch: dict[str, Tensor]) -> list[Tensor]:
        with parallel.noting_counts() as counts:
            self.network.losses(batch)  # type: ignore[operator]
        return counts


def _next(batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return next(batches)
    except WeaksegError as error:
        # From a worker process it comes as the text of a traceback that ends with the message.
        raise WeaksegError(str(error).rpartition(f"{WeaksegError.__name__}: ")[2].strip()) from None


def _to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    moved["image"] = moved["image"].contiguous(memory_format=torch.channels_last)
    return moved


def _finite_means(fabric: Fabric, terms: dict[str, Tensor], norm: Tensor, where: str) -> dict[str, float]:
    """The loss and its terms, averaged over processes; they and the norm of the gradient must be finite."""
    stacked = torch.stack([*terms.values(), norm]).float()
    if parallel.world_size() > 1:
        stacked = fabric.all_reduce(stacked, reduce_op="mean")  # type: ignore[assignment]
    *means, gradient = stacked.tolist()
    loss = sum(means)
    for what, value in (("loss", loss), ("gradient", gradient)):
        if not math.isfinite(value):
            raise _diverged(f"{where}: the {what} became {value}")
    return {"loss": loss} if len(terms) == 1 else {"loss": loss, **dict(zip(terms, means, strict=True))}


def _check_weights(network: nn.Module, where: str) -> None:
    """Raise `WeaksegError` where an update of a finite loss and gradient was still too large."""
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise _diverged(f"{where}: {name} is not finite any more")


def _diverged(fault: str) -> WeaksegError:
    return WeaksegError(f"{fault}. Lower the learning rate (train.lr) or limit the gradient (train.clip_norm=1).")


class _Log:
    """The lines of `train.jsonl`; on resume, lines after the checkpoint are dropped since they come again."""

    def __init__(self, path: Path, done: int) -> None:
        self.path, self.active = path, parallel.rank() == 0
        if not self.active:
            return
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] <= done] if done else []
        write_text(path, "".join(kept))

    def __enter__(self) -> _Log:
        if self.active:
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.file.close()

    def write(self, **values: Any) -> None:
        if self.active:
            self.file.write(json.dumps(values) + "\n")


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def save_checkpoint(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights, buffers and the optimiser's state after `step` updates; atomic."""
    tensors = {f"network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).contiguous()
    write_bytes(path, save(tensors, metadata={"step": str(step)}))


def load_checkpoint(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Read a checkpoint into network and optimiser; returns the number of updates done."""
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step
