"""One training loop for all methods: precision, devices, processes, schedule, checkpoints, exact resume, log.

A run that was killed goes on from its last checkpoint and ends with the same weights as one that was not: the
order of images and their augmentation are functions of (seed, epoch, place), everything else random is seeded
anew at every update, and the checkpoint holds weights, buffers and the optimiser's state.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from weakseg import parallel
from weakseg.allocation import keeping_freed_memory
from weakseg.data.loading import Batches
from weakseg.errors import WeaksegError, out_of_memory
from weakseg.files import read_json_lines, write_bytes, write_text
from weakseg.methods.base import Method, means
from weakseg.optimisation import TrainSettings, build_optimiser
from weakseg.progress import Progress
from weakseg.runtime import RuntimeSettings
from weakseg.tensorboard import EventFile

LOG_NAME = "train.jsonl"
CHECKPOINT_NAME = "checkpoint.safetensors"


def train_network(
    fabric: Fabric,
    network: Method,
    images: TrainingSet,
    settings: TrainSettings,
    runtime: RuntimeSettings,
    *,
    folder: Path,
    seed: int,
    title: str = "training",
) -> None:
    """Train `network` in place.

    `folder` receives the log `train.jsonl` (one line per update: step, epoch, loss and its terms, lr, images_per_s)
    and checkpoints, from which the same call goes on; with `runtime.tensorboard`, an event file with the numbers of the
    log, too. The network ends on the CPU or GPU where it was trained.

    Raises `WeaksegError` if the loss, its gradient or the weights stop being finite; the checkpoint then is one of
    before. Ctrl-C ends the training after the current update with a checkpoint, as `KeyboardInterrupt`.
    """
    order = settings.order(len(images), seed, images.images_per_draw)
    batch_size = order.batch_size * images.images_per_draw
    steps = settings.total_steps(order)
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = build_optimiser(settings, network.param_groups(settings.lr))
    base_rates = [group["lr"] for group in optimiser.param_groups]
    checkpoint = folder / CHECKPOINT_NAME
    done = load_checkpoint(checkpoint, network, optimiser) if checkpoint.exists() else 0
    log = _Log(folder / LOG_NAME, done, tensorboard=runtime.tensorboard)
    network.train()
    module, fabric_optimiser = fabric.setup(network, optimiser)
    module.mark_forward_method("losses")
    batches = iter(
        DataLoader(
            images,  # type: ignore[arg-type]
            batch_sampler=Batches(
                order,
                done,
                steps,
                accumulate=settings.accumulate,
                rank=parallel.rank(),
                world=parallel.world_size(),
            ),
            num_workers=runtime.loader_workers(fabric.device),
            worker_init_fn=_leave_interrupts_to_the_loop,
            pin_memory=fabric.device.type == "cuda",
        )
    )
    saved_at = time.monotonic()
    parts_of_all = parallel.world_size() * settings.accumulate
    progress_bar = Progress(title, steps * batch_size, done=done * batch_size)
    with log, _Interrupt() as interrupt, progress_bar as progress, keeping_freed_memory():
        for step in range(done, steps):
            factor = settings.rate_factor(step, steps, order.steps_per_epoch)
            for group, rate in zip(optimiser.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
            parts = [_to_device(_next(batches), fabric.device) for _ in range(settings.accumulate)]
            counts = _counts_of_update(network, parts)
            network.begin_update(step, steps)
            # Dropout and the like: a function of the update and the process, so a resumed run draws the same.
            torch.manual_seed((seed * 1_000_003 + step) * 4096 + parallel.rank())
            terms: dict[str, Tensor] = {}
            for part, batch in enumerate(parts):
                with (
                    fabric.no_backward_sync(module, enabled=part < settings.accumulate - 1),
                    torch.autocast(fabric.device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
                ):
                    losses = means(module.losses(batch), counts, parts_of_all)
                    total = torch.stack(list(losses.values())).sum() / settings.accumulate
                fabric.backward(total)
                for name, value in losses.items():
                    terms[name] = terms.get(name, 0) + value.detach() / settings.accumulate
            learning = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None])
            values, stopping = _finite_means(fabric, terms, norm, interrupt.asked, f"{title}, update {step + 1}")
            if settings.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(learning, settings.clip_norm, norm)
            fabric_optimiser.step()
            network.end_update()
            progress.advance(batch_size, loss=values["loss"])
            epoch = step / order.steps_per_epoch
            log.write(step=step + 1, epoch=round(epoch, 4), **values, lr=optimiser.param_groups[0]["lr"],
                      images_per_s=round(progress.rate, 2))  # fmt: skip
            steps_due = runtime.checkpoint_steps and (step + 1) % runtime.checkpoint_steps == 0
            minutes_due = time.monotonic() - saved_at > 60 * runtime.checkpoint_minutes
            if stopping or ((steps_due or minutes_due) and step + 1 < steps):
                _check_weights(network, f"{title}, update {step + 1}")
                if parallel.rank() == 0:
                    save_checkpoint(checkpoint, network, optimiser, step + 1)
                saved_at = time.monotonic()
            if stopping:
                raise KeyboardInterrupt
    _check_weights(network, f"{title}, the last update")
    optimiser.zero_grad(set_to_none=True)


class TrainingSet(Protocol):
    """A map-style data set whose keys are `data.loading.Draw`s. One that makes several images of each that is drawn
    says how many (`images_per_draw`), which all count in the batch size."""

    @property
    def images_per_draw(self) -> int: ...

    def __len__(self) -> int: ...


class _Interrupt:
    """The first Ctrl-C is noted, so that the update at hand is finished; the second interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _Interrupt:
        # Only the main thread gets signals.
        self.before = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
        if self.before is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _note(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.before)


def _leave_interrupts_to_the_loop(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _counts_of_update(network: Method, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the sums among the losses are over in a whole update, all micro-batches and processes."""
    counts = [network.counts(part) for part in parts]
    if not counts[0]:
        return {}
    total = torch.stack([torch.stack(list(of_part.values())) for of_part in counts]).sum(0)
    return dict(zip(counts[0], parallel.sum_tensor(total).unbind(), strict=True))


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


def _finite_means(
    fabric: Fabric, terms: dict[str, Tensor], norm: Tensor, asked: bool, where: str
) -> tuple[dict[str, float], bool]:
    """The loss and its terms, averaged over processes; they and the norm of the gradient must be finite. Whether any
    process was asked to stop comes with them."""
    stacked = torch.stack([*terms.values(), norm, norm.new_tensor(float(asked))]).float()
    if parallel.world_size() > 1:
        stacked = fabric.all_reduce(stacked, reduce_op="mean")  # type: ignore[assignment]
    *of_terms, gradient, asked_anywhere = stacked.tolist()
    loss = sum(of_terms)
    for what, value in (("loss", loss), ("gradient", gradient)):
        if not math.isfinite(value):
            raise _diverged(f"{where}: the {what} became {value}")
    values = {"loss": loss} if len(terms) == 1 else {"loss": loss, **dict(zip(terms, of_terms, strict=True))}
    return values, asked_anywhere > 0


def _check_weights(network: nn.Module, where: str) -> None:
    """Raise `WeaksegError` where an update of a finite loss and gradient was still too large."""
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise _diverged(f"{where}: {name} is not finite any more")


def _diverged(fault: str) -> WeaksegError:
    return WeaksegError(f"{fault}. Lower the learning rate (train.lr) or limit the gradient (train.clip_norm=1).")


class _Log:
    """The lines of `train.jsonl`, for TensorBoard, too, where wanted; on resume, lines after the checkpoint are dropped
    since they come again."""

    def __init__(self, path: Path, done: int, *, tensorboard: bool) -> None:
        self.path, self.active = path, parallel.rank() == 0
        self.tensorboard = tensorboard and self.active
        if not self.active:
            return
        kept = [record for record in read_json_lines(path) if record.get("step", done + 1) <= done] if done else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def __enter__(self) -> _Log:
        if self.active:
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        if self.tensorboard:
            self.events = EventFile(self.path.parent)
            for record in read_json_lines(self.path):
                self.events.add(record)
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            self.file.close()
        if self.tensorboard:
            self.events.close()

    def write(self, **values: Any) -> None:
        if self.active:
            self.file.write(json.dumps(values) + "\n")
        if self.tensorboard:
            self.events.add(values)


def save_checkpoint(path: Path, network: Method, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights, buffers, and the state of the method and of the optimiser after `step` updates; atomic."""
    tensors = {f"network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    # Clones, since a file of tensors must not hold one memory twice.
    tensors |= {f"state.{name}": value.detach().clone() for name, value in network.training_state().items()}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).contiguous()
    write_bytes(path, save(tensors, metadata={"step": str(step)}))


def load_checkpoint(path: Path, network: Method, optimiser: torch.optim.Optimizer) -> int:
    """Read a checkpoint into network and optimiser; returns the number of updates done. Raises `WeaksegError` for a
    damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        network.load_state_dict(_below("network.", tensors))
    except (SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise WeaksegError(
            f"{path} is damaged, so the training cannot go on from it. Delete it and run the same command again: this "
            "training begins anew and ends with the same weights; other stages are kept."
        ) from error
    network.load_training_state(_below("state.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
