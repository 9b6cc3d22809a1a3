"""What a stage of a run is: typed settings that know which stages they read and how to do their work."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy.typing as npt
from pydantic.fields import FieldInfo

from weakseg.data.dataset import Sample
from weakseg.pipeline.context import Context
from weakseg.settings import Settings

if TYPE_CHECKING:
    from weakseg.report.figures import Shown
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

MODEL_FOLDER = "model"
THRESHOLD_NAME = "threshold.json"
"""Where a stage of masks says what score its background has."""


@dataclass(frozen=True, init=False)
class Reads:
    """Annotates a setting that names another stage, or several (title → name): any that leaves one of `artifacts`;
    with none given, any stage that makes an array for every image (`Stage.array_of`)."""

    artifacts: tuple[str, ...]

    def __init__(self, *artifacts: str) -> None:
        object.__setattr__(self, "artifacts", artifacts)


class Reference(NamedTuple):
    """A setting that names another stage: its key inside the settings, that stage, and what is read of it."""

    key: str
    stage: str
    reads: Reads


class Stage(Settings):
    """Base of all stages. A subclass says its `kind` and which artifact it `leaves`, refers to other stages by settings
    `Annotated[str, Reads("maps")]` and implements `run`. Its `version` is raised with every change that changes its
    artifacts: finished stages of earlier versions are then done again.

    Artifacts are "localiser", "refiner" and "segmenter" (a folder `model/`), "maps" (see `stages.maps.map_path`),
    "masks" (`stages.masks.mask_path`) and whatever other stages leave for each other.
    """

    leaves: ClassVar[str | None] = None
    version: ClassVar[int] = 1
    kind: str

    def references(self) -> list[Reference]:
        """The settings that name the stages whose artifacts this one reads."""
        return list(_references(self))

    def inputs_of(self) -> list[str]:
        """The stages whose artifacts this one reads."""
        return list(dict.fromkeys(reference.stage for reference in self.references()))

    def reading(self, names: Mapping[str, str]) -> Self:
        """This stage with other stages to read: old name → new name."""
        return _reading(self, names)

    def without(self, stages: Collection[str]) -> Self:
        """This stage without the entries of its lists (title → stage) that name one of these stages."""
        return _without(self, stages)

    def with_weights(self, weights: str) -> Self:
        """This stage with one file of weights for every backbone that does not start at random."""
        return self

    def checked(self, where: str) -> Self:
        """This stage with whatever its own types cannot check checked, and defaults filled in.

        `where` (the stage's name) starts the names in error messages.
        """
        return self

    def settings_of_artifact(self) -> dict[str, Any]:
        """The settings that the artifact is made with, where they differ from the defaults: a setting that a later
        version adds changes nothing of what was made without it."""
        return {"kind": self.kind, **self.model_dump(mode="json", exclude_defaults=True)}

    def versions(self) -> list[Any]:
        """What changes with the program: the stage's version, and that of the method that it uses."""
        return [self.version]

    def dependencies(self, context: Context) -> list[str]:
        """What else it depends on, besides the classes and the stages that are read: texts that change with that part
        of the data (see `pipeline.stamps`), with the seed, with files that the settings name.
        """
        return []

    def reads_weak_labels(self) -> bool:
        """Whether tags, boxes, points or scribbles of the training images matter to this stage."""
        return True

    def prepare(self, context: Context) -> None:
        """Find out before the first stage begins, not hours later, what would stop this one."""

    def run(self, context: Context, folder: Path) -> None:
        """Write the artifact into `folder`, sharing the work with the other processes.

        What an interrupted call with the same settings and inputs left in `folder` is still there, and every file
        in it is complete.
        """
        raise NotImplementedError

    def describe(self, context: Context, folder: Path) -> None:
        """Write into the artifact what is not among the `settings_of_artifact`: how it is to be used, say.

        Called after `run`, and again whenever the finished stage is met.
        """

    @staticmethod
    def array_of(folder: Path, sample: Sample) -> npt.NDArray[Any]:
        """What the stage of this folder made of one image, as one array of the image's size: for methods that read it
        as a field (`pipeline.learning.Learning.inputs`)."""
        raise NotImplementedError

    @classmethod
    def makes_arrays(cls) -> bool:
        """Whether this kind of stage has `array_of`."""
        return cls.array_of is not Stage.array_of

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


def _marked(settings: Settings) -> Iterator[tuple[str, Any, Reads | None]]:
    """The settings of a group: key, value, and what is read of the stages that it names."""
    for key, field in type(settings).model_fields.items():
        yield key, getattr(settings, key), _mark(field)


def _mark(field: FieldInfo) -> Reads | None:
    return next((mark for mark in field.metadata if isinstance(mark, Reads)), None)


def _references(settings: Settings, prefix: str = "") -> Iterator[Reference]:
    """The settings, at any depth, that name other stages."""
    for key, value, reads in _marked(settings):
        if isinstance(value, Settings):
            yield from _references(value, f"{prefix}{key}.")
        elif reads and isinstance(value, Mapping):
            yield from (Reference(f"{prefix}{key}.{title}", stage, reads) for title, stage in value.items())
        elif reads and value is not None:
            yield Reference(f"{prefix}{key}", value, reads)


def _reading(settings: S, names: Mapping[str, str]) -> S:
    """The settings with other names of the stages that they name, at any depth."""
    changed: dict[str, Any] = {}
    for key, value, reads in _marked(settings):
        if isinstance(value, Settings):
            changed[key] = _reading(value, names)
        elif reads and isinstance(value, Mapping):
            changed[key] = {title: names.get(stage, stage) for title, stage in value.items()}
        elif reads and value is not None:
            changed[key] = names.get(value, value)
    return settings.model_copy(update=changed)


def _without(settings: S, stages: Collection[str]) -> S:
    lists = {key: value for key, value, reads in _marked(settings) if reads and isinstance(value, Mapping)}
    kept = {key: {title: stage for title, stage in rows.items() if stage not in stages} for key, rows in lists.items()}
    return settings.model_copy(update=kept)
