"""Where and how a run works: device, processes, checkpoints. Nothing here changes what comes out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from weakseg.errors import WeaksegError
from weakseg.settings import Settings
from weakseg.tensorboard import require_tensorboard

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric


class RuntimeSettings(Settings):
    """Where and how a run works, without influence on what comes out."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is a GPU")
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        default="auto", description="processes that load images; auto: none on a CPU"
    )
    checkpoint_minutes: float = Field(default=5.0, ge=0, description="time between two checkpoints")
    checkpoint_steps: int | None = Field(default=None, gt=0, description="updates between two checkpoints, besides")
    tensorboard: bool = Field(
        default=False, description="write losses and scores for TensorBoard, too; needs the extra weakseg[tensorboard]"
    )

    def loader_workers(self, device: torch.device) -> int:
        """Worker processes of a data loader. On a CPU the network already uses every core."""
        from weakseg.threads import cpu_threads

        if self.workers != "auto":
            return self.workers
        return 0 if device.type == "cpu" else min(8, cpu_threads())


def start(runtime: RuntimeSettings) -> Fabric:
    """Take hold of the device and, under `torchrun`, of the other processes."""
    import torch
    from lightning_fabric import Fabric

    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise WeaksegError("runtime.device is cuda, but this PyTorch sees no CUDA device. Use cpu or auto.")
    if runtime.tensorboard:
        require_tensorboard()
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
