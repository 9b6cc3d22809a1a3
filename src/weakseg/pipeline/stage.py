"""What a stage of a run is: typed settings that know which stages they read and how to do their work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from lightning_fabric import Fabric
from pydantic import Field
from pydantic.fields import FieldInfo
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from weakseg import parallel
from weakseg.data.dataset import Dataset, Sample
from weakseg.data.images import file_stamp
from weakseg.data.loading import balanced_subset
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.methods.base import Kind, find_method
from weakseg.methods.store import Model, load_model
from weakseg.progress import Progress
from weakseg.settings import Settings, validate
from weakseg.training import RuntimeSettings, TrainSettings, train_network

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

MODEL_FOLDER = "model"
LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class Reads:
    """Annotates a setting that names an earlier stage, or several (title → name): any that leaves `artifact`."""

    artifact: str


class Reference(NamedTuple):
    """A setting that names an earlier stage: its key inside the settings, that stage, and what is read of it."""

    key: str
    stage: str
    artifact: str


class Stage(Settings):
    """Base of all stages. A subclass says its `kind` and which artifact it `leaves`, refers to other stages by settings
    `Annotated[str, Reads("maps")]` and implements `run`.

    Artifacts are "localiser", "refiner" and "segmenter" (a folder `model/`), "maps" (see `stages.maps.map_path`),
    "masks" (`stages.masks.mask_path`) and "pool" (`methods.cda.Pool`).
    """

    leaves: ClassVar[str | None] = None
    kind: str

    def references(self) -> list[Reference]:
        """The settings that name the stages whose artifacts this one reads."""
        return list(_references(self))

    def inputs(self) -> list[str]:
        """The stages whose artifacts this one reads."""
        return list(dict.fromkeys(reference.stage for reference in self.references()))

    def reading(self, names: Mapping[str, str]) -> Self:
        """This stage with other stages to read: old name → new name."""
        return _reading(self, names)

    def checked(self, where: str) -> Self:
        """This stage with whatever its own types cannot check checked, and defaults filled in.

        `where` (the stage's name) starts the names in error messages.
        """
        return self

    def settings_of_artifact(self) -> dict[str, Any]:
        """The settings that the artifact is made with."""
        return self.model_dump(mode="json")

    def dependencies(self, context: Context) -> list[str]:
        """What else it depends on, besides the classes and the stages that are read: texts that change with that part
        of the data (see `pipeline.stamps`), with the seed, with files that the settings name.
        """
        return []

    def prepare(self, context: Context) -> None:
        """Find out before the first stage begins, not hours later, what would stop this one."""

    def run(self, context: Context, folder: Path) -> None:
        """Write the artifact into `folder`, sharing the work with the other processes.

        What an interrupted call with the same settings and inputs left in `folder` is still there, and every file
        in it is complete.
        """
        raise NotImplementedError

    def describe(self, folder: Path) -> None:
        """Write into the artifact what is not among the `settings_of_artifact`: how it is to be used, say.

        Called after `run`, and again whenever the finished stage is met.
        """

    # The part of a finished stage, called `name`, in the report of a run. An old run's settings may not be valid today,
    # so these are asked of the class, which finds the settings among the run's files.

    @classmethod
    def report_scores(cls, run: RunFolder, name: str) -> Iterator[Markup]:
        """Tables below the table of scores."""
        yield from ()

    @classmethod
    def report_figures(cls, run: RunFolder, name: str, shown: Shown) -> Iterator[Markup]:
        """Pictures of what the stage made of an image, in the strip beside it."""
        yield from ()

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        """Whole parts of the page: title → content. Parts of several stages with one title become one."""
        return {}


S = TypeVar("S", bound=Settings)


def _references(settings: Settings, prefix: str = "") -> Iterator[Reference]:
    """The settings, at any depth, that name earlier stages."""
    for key, field in type(settings).model_fields.items():
        value, artifact = getattr(settings, key), _artifact(field)
        if isinstance(value, Settings):
            yield from _references(value, f"{prefix}{key}.")
        elif artifact and isinstance(value, Mapping):
            yield from (Reference(f"{prefix}{key}.{title}", stage, artifact) for title, stage in value.items())
        elif artifact and value is not None:
            yield Reference(f"{prefix}{key}", value, artifact)


def _reading(settings: S, names: Mapping[str, str]) -> S:
    """The settings with other names of the stages that they name, at any depth."""
    changed: dict[str, Any] = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, Settings):
            changed[key] = _reading(value, names)
        elif _artifact(field) and isinstance(value, Mapping):
            changed[key] = {title: names.get(stage, stage) for title, stage in value.items()}
        elif _artifact(field):
            changed[key] = names.get(value, value)
    return settings.model_copy(update=changed)


def _artifact(field: FieldInfo) -> str | None:
    """What a setting reads of the earlier stage that it names; None where it names none."""
    return next((mark.artifact for mark in field.metadata if isinstance(mark, Reads)), None)


class Learning(Stage):
    """Base of the stages that train a network: `method` is a file of `weakseg.methods`, `model` are its settings.

    `backbone_from` is a localiser whose trained backbone the network starts from; null: from the backbone's weights.
    """

    method_kind: ClassVar[Kind]
    method: str
    model: dict[str, Any] = Field(default_factory=dict)
    images_per_class: int | None = Field(
        default=None, gt=0, description="learn from a balanced part of the images: at most so many of a class"
    )
    backbone_from: Annotated[str | None, Reads("localiser")] = None
    augment: Augmentation
    train: TrainSettings

    def checked(self, where: str) -> Self:
        settings = validate(find_method(self.method_kind, self.method).Settings, self.model, f"{where}.model")
        return self.model_copy(update={"model": settings.model_dump(mode="json")})

    def dependencies(self, context: Context) -> list[str]:
        weights = Path(str(self.model.get("backbone", {}).get("weights"))).expanduser()
        return [str(context.seed), file_stamp(weights) if weights.is_file() else ""]

    def settings_of_artifact(self) -> dict[str, Any]:
        # What was learned before there was a choice of where to start is still what it would be.
        return self.model_dump(mode="json", exclude={"backbone_from"} if self.backbone_from is None else set())

    def prepare(self, context: Context) -> None:
        _, network = self.network(context)
        if self.backbone_from is not None:
            localiser = context.stages[self.backbone_from]
            assert isinstance(localiser, Learning)
            self._start_from(network, localiser.network(context, load_weights=False)[1])

    def samples(self, context: Context) -> Sequence[Sample]:
        """The samples of the training split that are learned from."""
        if self.images_per_class is None:
            return context.train
        return balanced_subset(context.train, self.images_per_class, context.seed)

    def learn(
        self, context: Context, folder: Path, images: TorchDataset[dict[str, Tensor]], *, decay: float = 1.0
    ) -> Model:
        """A network of the method, trained on `images` (see `train_network`); logs and checkpoints go to `folder`."""
        settings, network = self.network(context)
        if self.backbone_from is not None:
            self._start_from(network, load_model(context.folder(self.backbone_from) / MODEL_FOLDER).network)
        train_network(
            context.fabric,
            network,
            images,
            self.train,
            context.runtime,
            folder=folder,
            seed=context.seed,
            title=f"training {self.method}",
            decay=decay,
        )
        return Model(self.method_kind, self.method, settings, context.dataset.classes, network, {})

    def _start_from(self, network: Any, localiser: Any) -> None:
        try:
            network.backbone.load_state_dict(localiser.backbone.state_dict())
        except RuntimeError:
            raise WeaksegError(
                f'The {self.method} cannot start from the backbone of the stage "{self.backbone_from}", which is of '
                "another kind. Give both the same model.backbone.name, or set backbone_from to null."
            ) from None

    def network(self, context: Context, *, load_weights: bool = True) -> tuple[Settings, nn.Module]:
        """The method's settings and its network, with the weights that it starts from."""
        method = find_method(self.method_kind, self.method)
        settings = method.Settings.model_validate(self.model)
        torch.manual_seed(context.seed)
        return settings, method(settings, len(context.dataset.classes), load_weights=load_weights)


@dataclass(frozen=True)
class Context:
    """What a stage works with: `stages` are all of the recipe; `train`, `score` and `val` are the samples that play
    these parts in the run."""

    stages: Mapping[str, Stage]
    dataset: Dataset
    seed: int
    runtime: RuntimeSettings
    fabric: Fabric
    root: Path
    train: Sequence[Sample]
    score: Sequence[Sample]
    val: Sequence[Sample]

    def folder(self, stage: str) -> Path:
        """The folder of a finished stage."""
        return self.root / stage

    def weakly_labelled(self) -> list[Sample]:
        """The samples to make pseudo-masks for: those of `train`, then those of `score` that are not among them."""
        known = {sample.name for sample in self.train}
        return [*self.train, *(sample for sample in self.score if sample.name not in known)]

    def log(self, event: str, **values: Any) -> None:
        """Add a line to the run's `log.jsonl`."""
        write_log(self.root, event, **values)


def write_log(root: Path, event: str, **values: Any) -> None:
    """Add one event to `log.jsonl` of a run; only the first process writes."""
    if parallel.rank() == 0:
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **values}
        with (root / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def complete(
    title: str,
    samples: Sequence[Sample],
    path: Callable[[Sample], Path],
    make: Callable[[Sample], object],
    through: Callable[..., Iterable[object]] = parallel.threaded,
) -> None:
    """Let the processes share the images and `make`, for each whose file `path` is not there yet, that file.

    `through` is how the images go through `make`: over threads, or one after the other with `map`.
    """
    mine = parallel.share(samples)
    missing = [sample for sample in mine if not path(sample).exists()]
    with Progress(title, len(mine), done=len(mine) - len(missing)) as progress:
        for _ in through(make, missing):
            progress.advance()
    parallel.barrier()


def require_labels(samples: Sequence[Sample], split: str) -> None:
    """Raise `WeaksegError` unless something is known of every sample."""
    unknown = [sample.name for sample in samples if not sample.labels.known]
    if not samples:
        raise WeaksegError(f'The split "{split}" has no images.')
    if unknown:
        raise WeaksegError(
            f'{len(unknown)} of {len(samples)} images of the split "{split}" have no tags and no other weak label, '
            f"the first is {unknown[0]}. Tag them, or take them out of the split."
        )
