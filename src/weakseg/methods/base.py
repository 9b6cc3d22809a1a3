"""What a method offers to the rest of the library, and how it is found by name.

A file `methods/<name>.py` declares what it is by a module attribute: `LOCALISER = <class>`, `REFINER = <class>`,
`SEGMENTER = <class>` or `RULE = <class>`, a subclass of the class of that name here. If its authors published weights,
`CHECKPOINTS = [Checkpoint(…), …]` says how to read them, and `weakseg convert` turns them into a model folder. Nothing
else has to be registered anywhere.

A method from outside of the package is named by the path of its file ("mine/method.py"), or by a name that an installed
package gives as an entry point of the group "weakseg.methods", whose value is a module with the same attributes.

What changes any localiser declares `AROUND = <function>` instead, which makes of the class of a localiser a subclass of
it. The name "FILE:METHOD" then stands for that subclass: "conta:seam". Such a class may add to what convolutions give:
`Localiser.class_layer` and `Backbone.reading` say which of them read the features of each of the five stages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from weakseg.errors import WeaksegError
from weakseg.models.backbone import Backbone
from weakseg.ops.activation import ActivationMaps, Views
from weakseg.ops.fields import LABELS, TAGS, Batch, ImageField
from weakseg.ops.instances import Instances
from weakseg.settings import Settings

__all__ = [
    "Batch", "Checkpoint", "Concluding", "Deciding", "Evidence", "Image", "Item", "Localiser", "MaskRule", "Method",
    "Reading", "Refiner", "Remembering", "Segmenter", "Separating", "Settings", "Spreading", "absolute", "checkpoints",
    "find_method", "kind_of", "means", "methods", "version_of",
]  # fmt: skip

Image = npt.NDArray[np.uint8]
"""RGB, (H, W, 3)."""
Item = dict[str, npt.NDArray[Any]]
"""One image with its fields, as named arrays."""
Evidence = Mapping[str, npt.NDArray[Any]]
"""What a refiner learns from one image, as named arrays."""

ENTRY_POINTS = "weakseg.methods"
AnySettings = Settings


class Method(nn.Module, ABC):
    """A network with its losses. Subclasses call `super().__init__(settings)`.

    `load_weights=False` skips pretrained weights, for a caller who fills the network from a checkpoint. `version` is
    raised with every change that changes results: finished stages of earlier versions are then done again.
    """

    Settings: ClassVar[type[AnySettings]] = Settings
    """What the network and its training depend on."""
    Options: ClassVar[type[AnySettings]] = Settings
    """What a trained network can be told without training it anew; in force are those in `options`."""
    version: ClassVar[int] = 1
    fields: ClassVar[Mapping[str, ImageField]] = {}
    """What is read beside the image, in training and, if a field says so, at inference."""

    def __init__(self, settings: Any, num_classes: int = 0, *, load_weights: bool = True) -> None:
        super().__init__()
        self.settings = settings
        self.options: Any = self.Options()

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars for `image` (N, 3, H, W) and the `fields`, as `prepare` leaves them.

        A scalar is a mean over the images of the batch or, if `counts` has its name, a sum over so many things. The
        mean of each is taken over the whole update, all processes and micro-batches; the sum of all means is minimised.
        """

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Over how many things (labelled pixels, pairs) the sums among the `losses` are, by their names: ().

        They depend on the batch alone, not on the weights, and are found without running the network.
        """
        return {}

    @abstractmethod
    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups for the optimiser: `params`, `lr` and, where it differs from the recipe's, `weight_decay`."""

    def start_from(self, other: Method) -> None:
        """Take over the weights of a trained network: all of them if it is of the same method, those of its backbone
        otherwise. Whatever does not fit raises `RuntimeError` or `AttributeError`."""
        if type(self) is type(other):
            self.load_state_dict(other.state_dict())
        else:
            self.get_submodule("backbone").load_state_dict(other.get_submodule("backbone").state_dict())

    @classmethod
    def prepare_image(cls, settings: Any, item: Item) -> Item:
        """What is learned from an image (H, W, 3) as it is in its file, and its fields, before a view of it is taken;
        happens in loading processes."""
        return item

    @classmethod
    def prepare(cls, settings: Any, view: Item) -> Item:
        """What is learned from one random view of an image (3, H, W) and its fields; happens in loading processes."""
        return view

    @classmethod
    def fields_at_inference(cls) -> dict[str, ImageField]:
        """Those of the `fields` that a trained network reads, too."""
        return {name: field for name, field in cls.fields.items() if field.at_inference}

    def begin_update(self, update: int, updates: int) -> None:
        """Get ready for update `update` (0 … updates - 1): set the weight of a loss that warms up, say."""

    def end_update(self) -> None:
        """Called by all processes after the weights were changed: note what was seen in this update, say."""

    def training_state(self) -> dict[str, Tensor]:
        """What else training needs to go on, besides parameters and buffers: memory banks, say. Part of checkpoints,
        not of model folders; names and shapes may change from call to call."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `training_state` gave."""


class Localiser(Method):
    """A classifier that shows where it looks."""

    fields: ClassVar[Mapping[str, ImageField]] = {"tags": TAGS}
    backbone: Backbone

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """`image` (N, 3, H, W) to the logits of the classes' presence (N, C)."""

    def class_layer(self) -> nn.Conv2d:
        """The 1×1 convolution, linear in its output, that makes the scores of the classes of the last features of
        `backbone`, for whoever adds to it (see `AROUND` above). A localiser that offers it promises:

        - Images go through `backbone`, and its last features through this layer before the next images do.
        - It gets these features at all their places, perhaps with some dropped, or their mean over all places,
          (N, D, 1, 1).
        - Its last C outputs are those of the classes; the background's may come before them.

        Raises `WeaksegError` for a localiser that has no such layer.
        """
        raise WeaksegError(f"{type(self).__name__} does not say which layer makes its class maps (class_layer).")

    @abstractmethod
    def activation_maps(self, batch: Batch) -> Tensor:
        """`image` (N, 3, H, W) to maps (N, C, h, w), not yet normalised. They are not negative, unless the maps'
        stage has the style "raw"."""


class Segmenter(Method):
    """Decides the class of every pixel."""

    fields: ClassVar[Mapping[str, ImageField]] = {"labels": LABELS}

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """`image` (N, 3, H, W) to scores (N, 1 + C, h, w), background first."""


class Refiner(Method):
    """Learns from images and their activation maps how to spread such maps over the objects they lie on.

    Its `fields` are read from the evidence of an image, which is computed before the training from the settings alone.
    """

    @staticmethod
    @abstractmethod
    def evidence(settings: Any, image: Image, maps: ActivationMaps) -> Evidence:
        """What is learned from one image; computed once and kept in a file."""

    @abstractmethod
    def refine(self, image: Image, maps: ActivationMaps, options: Any, device: torch.device) -> ActivationMaps:
        """The maps of one image, spread. The network is on `device`, in evaluation mode. Maps that get a background
        score of their own begin with label 0; all maps that a refiner returns do, or none."""


@runtime_checkable
class Separating(Protocol):
    """A refiner that tells the instances of a class apart."""

    InstanceOptions: ClassVar[type[AnySettings]]

    def instances(self, image: Image, maps: ActivationMaps, options: Any, device: torch.device) -> Instances:
        """The instances of the classes in `maps`. The network is on `device`, in evaluation mode."""
        ...


@runtime_checkable
class Concluding(Protocol):
    """A method of any kind that looks at its training images once more after the training."""

    def conclude(self, items: Iterable[Item], device: torch.device) -> None:
        """`items` are this process's images, uint8 (H, W, 3), with their fields, not augmented; all processes call
        this. The network is on `device`."""
        ...


@runtime_checkable
class Deciding(Protocol):
    """A segmenter with its own way from the views of an image to the probabilities of its pixels."""

    def probabilities(
        self, views: Views, device: torch.device, mirrored: Sequence[int], *, mirror: bool
    ) -> Iterator[Tensor]:
        """Probabilities (1 + C, H, W) of each image of `views` and, with `mirror`, their mirror images, where a label
        is another one, `mirrored` (1 + C of them). The network is on `device`, in evaluation mode."""
        ...


@runtime_checkable
class Spreading(Protocol):
    """A method that spreads labels over an image by the similarity of what it makes of its pixels."""

    SpreadOptions: ClassVar[type[AnySettings]]

    def spread(self, item: Item, maps: ActivationMaps | None, options: Any, device: torch.device) -> Tensor:
        """Scores (1 + C, H, W) of one image. `item` holds `image`, uint8 (H, W, 3), its partial `labels` and, where
        there are some, `regions`, both (H, W); `maps` are its activation maps, where they are needed. The network is on
        `device`, in evaluation mode."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A method that labels an image by what it remembers of others."""

    RetrievalOptions: ClassVar[type[AnySettings]]

    def remember(self, item: Item, options: Any, device: torch.device) -> dict[str, npt.NDArray[Any]]:
        """What is remembered of one image with `labels` (H, W): named arrays, whose rows belong together."""
        ...

    def retrieve(
        self, image: Image, present: Collection[int], memory: Mapping[str, Tensor], options: Any, device: torch.device
    ) -> Tensor:
        """Scores (1 + C, H, W) of one image by the rows of all images' memories, on `device`. `present` are the labels
        that it is known to show, 0 among them."""
        ...


class MaskRule(ABC):
    """Makes pseudo-masks from activation maps in a method's own way."""

    Settings: ClassVar[type[AnySettings]] = Settings
    version: ClassVar[int] = 1
    fields: ClassVar[Mapping[str, ImageField]] = {}
    """What is read beside the image."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def mask(self, item: Item, maps: ActivationMaps, tags: Collection[int], num_classes: int) -> npt.NDArray[np.uint8]:
        """The label map (H, W) of one image: 0 background, 1 … C, 255 void. `item` holds `image`, uint8 (H, W, 3), and
        the fields that the rule reads; `tags` are the labels 1 … C that the image is known to show."""


Kind = type[Method] | type[MaskRule]
KINDS: Mapping[str, Kind] = {"localiser": Localiser, "refiner": Refiner, "segmenter": Segmenter, "rule": MaskRule}
M = TypeVar("M", Localiser, Refiner, Segmenter, MaskRule, Method)


def kind_of(method: Method) -> str:
    """The kind of a method: "localiser", "refiner" or "segmenter"."""
    return next(name for name, kind in KINDS.items() if isinstance(method, kind))


def means(losses: Mapping[str, Tensor], counts: Mapping[str, Tensor], parts: int = 1) -> dict[str, Tensor]:
    """The losses with sums turned into means; a sum over nothing becomes 0.

    `counts` are those of a whole update, of which this batch is one of so many `parts`: the average over the parts is
    the mean over all.
    """
    return {
        name: value * parts / counts[name].clamp(min=1) if name in counts else value for name, value in losses.items()
    }


# Finding methods ------------------------------------------------------------------------------------------------------


def methods(kind: type[M]) -> dict[str, type[M]]:
    """All methods of one kind by name: those of the package and those that installed packages bring."""
    return {name: _declared(module, kind) for name, module in _modules().items() if hasattr(module, _attribute(kind))}


def _modules() -> dict[str, ModuleType]:
    """The modules of the package and those that installed packages bring."""
    import weakseg.methods as package

    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return modules | {entry.name: _loaded(entry) for entry in _installed(*sys.path)}


@cache
def _installed(*path: str) -> EntryPoints:
    """What installed packages bring, found once for each search path: all of their descriptions are read."""
    return entry_points(group=ENTRY_POINTS)


def _around() -> dict[str, Callable[[type[Localiser]], type[Localiser]]]:
    """What makes localisers of localisers, by name."""
    return {name: module.AROUND for name, module in _modules().items() if hasattr(module, "AROUND")}


def find_method(kind: type[M], name: str) -> type[M]:
    """The class of a method by its name or the path of its file; "conta:NAME" is that of a localiser with a context
    (see `AROUND` above). Raises `WeaksegError` for an unknown one, with the names there are, and for a file that cannot
    be imported or declares nothing of this kind."""
    outer, colon, inner = name.partition(":")
    if colon and issubclass(Localiser, kind) and outer in (around := _around()):
        return around[outer](find_method(Localiser, inner))  # type: ignore[return-value]
    if name.endswith(".py"):
        module = _module_in(Path(absolute(name)))
        if not hasattr(module, _attribute(kind)):
            raise WeaksegError(f"{name} declares no {_word(kind)}: set {_attribute(kind)} to its class at the end.")
        return _declared(module, kind)
    known = methods(kind)
    if name not in known:
        raise WeaksegError(
            f'There is no {_word(kind)} "{name}". There are: {", ".join(sorted(known))}. A file must end in .py.'
        )
    return known[name]


def absolute(name: str) -> str:
    """The name of a method; if it is the path of a file, one that means the same from any working directory."""
    return str(Path(name).expanduser().resolve()) if name.endswith(".py") else name


def version_of(method: Kind) -> list[Any]:
    """What changes when results of a method may change: its version and, for a method under development, a digest of
    its source (without comments and docstrings). Methods of an installed weakseg change with the version alone."""
    module = sys.modules[method.__module__]
    path = Path(inspect.getfile(module))
    installed = module.__name__.startswith("weakseg.") and "site-packages" in path.parts
    if installed:
        return [method.version]
    sources = sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
    return [method.version, *(_digest(source.read_text(encoding="utf-8")) for source in sources)]


def _word(kind: Kind) -> str:
    return next(name for name, known in KINDS.items() if known is kind)


def _attribute(kind: Kind) -> str:
    return _word(kind).upper()


def _declared(module: ModuleType, kind: type[M]) -> type[M]:
    declared = getattr(module, _attribute(kind))
    if not (isinstance(declared, type) and issubclass(declared, kind)):
        raise WeaksegError(
            f"{module.__file__}: {_attribute(kind)} is {declared!r}, expected a subclass of weakseg.methods.base."
            f"{kind.__name__}."
        )
    if missing := sorted(getattr(declared, "__abstractmethods__", ())):
        raise WeaksegError(f"{module.__file__}: {declared.__name__} lacks {', '.join(missing)} (see {kind.__name__}).")
    return declared


def _loaded(entry: Any) -> ModuleType:
    try:
        return cast(ModuleType, entry.load())
    except Exception as error:
        raise WeaksegError(f"The installed method {entry.name} ({entry.value}) cannot be imported: {error}.") from error


def _module_in(path: Path) -> ModuleType:
    """The module in a file, imported again only when the file has changed."""
    if not path.is_file():
        raise WeaksegError(f"There is no file {path} with a method.")
    return _imported(path, path.read_bytes())


@cache
def _imported(path: Path, source: bytes) -> ModuleType:
    name = f"weakseg_method_{hashlib.sha256(str(path).encode() + source).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except WeaksegError:
        raise
    except Exception as error:  # whatever a stranger's file does
        del sys.modules[name]
        raise WeaksegError(f"{path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module


@cache
def _digest(source: str) -> str:
    """Changes with what a source does, not with how it is explained."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# Published checkpoints ------------------------------------------------------------------------------------------------


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


def checkpoints() -> list[tuple[str, str, Checkpoint]]:
    """All published checkpoints that can be read, with the kind and the name of the method they belong to."""
    found: list[tuple[str, str, Checkpoint]] = []
    for word, kind in KINDS.items():
        for name, method in methods(cast(type[Method], kind)).items():
            module = sys.modules[method.__module__]
            found += [(word, name, checkpoint) for checkpoint in getattr(module, "CHECKPOINTS", ())]
    return found
