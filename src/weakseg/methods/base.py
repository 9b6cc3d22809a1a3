"""What a method offers to the rest of the library, and how its file is found by name.

A file `methods/<name>.py` declares what it is by a module attribute: `LOCALISER = <class>`, `REFINER = <class>` or
`SEGMENTER = <class>`. If its authors published weights, `CHECKPOINTS = [Checkpoint(…), …]` says how to read them,
and `weakseg convert` turns them into a model folder. Nothing else has to be registered anywhere.

Their constructors take `load_weights=False` where the weights come from a file afterwards, so that none are
loaded twice.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weakseg.errors import WeaksegError
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.instances import Instances
from weakseg.settings import Settings

if TYPE_CHECKING:
    from weakseg.data.transforms import Augmentation

__all__ = [
    "Batch", "Checkpoint", "Concluding", "Evidence", "Image", "Kind", "Localiser", "Reading", "Refiner", "Segmenter",
    "Separating", "Settings", "Trainable", "checkpoints", "find_method", "methods",
]  # fmt: skip

Kind = Literal["LOCALISER", "REFINER", "SEGMENTER"]
Batch = Mapping[str, Tensor]
Image = npt.NDArray[np.uint8]
"""RGB, (H, W, 3)."""
Evidence = Mapping[str, npt.NDArray[Any]]
"""What a refiner learns from one image, as named arrays."""


@dataclass(frozen=True)
class Reading:
    """What a published checkpoint holds, in terms of a method: `state` has the names of its network.

    `num_classes` is C, or None for a network that does not know of classes. `ignored` are the tensors of the file that
    are left out because the network has no use for them, `inference` are the settings that the authors predict with.
    """

    settings: Settings
    num_classes: int | None
    state: Mapping[str, Tensor]
    ignored: Sequence[str] = ()
    inference: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A kind of checkpoint that the authors of a method published.

    `matches` is told the names of all tensors in a file. `read` is given the tensors; what it raises as `WeaksegError`
    ends the sentence "FILE is not ABOUT: …". What is missing, or of another shape, it need not notice.
    """

    name: str
    about: str
    matches: Callable[[Collection[str]], bool]
    read: Callable[[Mapping[str, Tensor]], Reading]


class Trainable(Protocol):
    """What the training loop knows of a network. Implementations are `nn.Module`s."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars; their sum is minimised.

        Each is a mean over the batch. Processes and micro-batches are averaged, so a mean over things of which batches
        hold different numbers (pixels with a label, say) goes through `parallel.mean_over_ranks`, which makes it the
        mean over the whole update. Their number may depend on the batch, not on the weights.
        """
        ...

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for SGD: `params`, `lr` and, where it differs from the recipe's, `weight_decay`."""
        ...


class Localiser(Trainable, Protocol):
    """Trained from batches of `image` (N, 3, H, W) float32 and `tags` (N, C) float32 of 0 and 1."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any, num_classes: int, *, load_weights: bool = True) -> None: ...

    def scores(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to the logits of the classes' presence (N, C)."""
        ...

    def activation_maps(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to non-negative maps (N, C, h, w), not yet normalised."""
        ...


class Refiner(Trainable, Protocol):
    """Learns from images and their activation maps how to spread such maps over the things they lie on.

    It is trained from batches of what `training_sample` gives. What precedes the training needs the settings alone and
    happens in other processes, hence the static methods.
    """

    Options: ClassVar[type[Settings]]
    """What `refine` may be told without training anew."""
    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any, num_classes: int, *, load_weights: bool = True) -> None: ...

    @staticmethod
    def evidence(settings: Any, image: Image, maps: ActivationMaps) -> dict[str, npt.NDArray[Any]]:
        """What is learned from one image; computed once and kept in a file."""
        ...

    @staticmethod
    def training_sample(
        settings: Any, image: Image, evidence: Evidence, augmentation: Augmentation, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """One random view: `image` (3, crop, crop) float32, normalised, and what `losses` compares it with."""
        ...

    def refine(self, image: Image, maps: ActivationMaps, options: Any, device: torch.device) -> ActivationMaps:
        """The maps of one image, spread. The network is on `device`, in evaluation mode. Maps that get a background
        score of their own begin with label 0; all maps that a refiner returns do, or none."""
        ...


@runtime_checkable
class Separating(Protocol):
    """A refiner that tells the instances of a class apart."""

    InstanceOptions: ClassVar[type[Settings]]

    def instances(self, image: Image, maps: ActivationMaps, options: Any, device: torch.device) -> Instances:
        """The instances of the classes in `maps`. The network is on `device`, in evaluation mode."""
        ...


@runtime_checkable
class Concluding(Protocol):
    """A refiner that looks at its training images once more after the training."""

    def conclude(self, images: Iterable[Image], device: torch.device) -> None:
        """`images` are this process's part of them; all processes call this. The network is on `device`."""
        ...


class Segmenter(Trainable, Protocol):
    """Trained from batches of `image` (N, 3, H, W) float32 and `labels` (N, H, W) uint8, 255 void."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any, num_classes: int, *, load_weights: bool = True) -> None: ...

    def logits(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to scores (N, 1 + C, h, w), background first."""
        ...


def methods(kind: Kind) -> dict[str, type[Any]]:
    """All methods of one kind by name."""
    import weakseg.methods as package

    found = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"weakseg.methods.{module_info.name}")
        if hasattr(module, kind):
            found[module_info.name] = getattr(module, kind)
    return found


def find_method(kind: Kind, name: str) -> type[Any]:
    """The class of a method; an unknown name raises with the names there are."""
    known = methods(kind)
    if name not in known:
        raise WeaksegError(f'There is no {kind.lower()} "{name}". There are: {", ".join(sorted(known))}.')
    return known[name]


def checkpoints() -> list[tuple[Kind, str, Checkpoint]]:
    """All published checkpoints that can be read, with the kind and the name of the method they belong to."""
    found: list[tuple[Kind, str, Checkpoint]] = []
    for kind in get_args(Kind):
        for name, method in methods(kind).items():
            module = sys.modules[method.__module__]
            found += [(kind, name, checkpoint) for checkpoint in getattr(module, "CHECKPOINTS", ())]
    return found
