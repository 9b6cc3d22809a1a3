"""Stages that train a network: where it starts, what it reads, how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy.typing as npt
import torch
from pydantic import Field

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.data.loading import (
    Reader,
    ReadFolder,
    ReadMarks,
    ReadTags,
    TrainingImages,
    balanced_subset,
    folder_readers,
    read_fields,
)
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.methods.base import Concluding, Item, Method, absolute, find_method, version_of
from weakseg.methods.store import Model, describe_model, load_model, save_model
from weakseg.ops.fields import ImageField
from weakseg.optimisation import TrainSettings
from weakseg.pipeline import stamps
from weakseg.pipeline.context import Context
from weakseg.pipeline.stage import MODEL_FOLDER, Reads, Stage
from weakseg.progress import Progress
from weakseg.settings import Settings, changed, validate
from weakseg.training import LOG_NAME, TrainingSet, train_network

if TYPE_CHECKING:
    from weakseg.data.loading import Order
    from weakseg.report.folder import RunFolder
    from weakseg.report.markup import Markup

OF_SAMPLES = ("tags", "marks")
"""The fields that are known of every sample with weak labels."""

FEW_UPDATES = 32
"""Even a pretrained network learns little in fewer updates (measured on 30 photographs, docs/own-photographs.md)."""


class Learning(Stage):
    """Base of the stages that train a network."""

    method_kind: ClassVar[type[Method]]
    images_per_draw: ClassVar[int] = 1
    """So many images of a batch are made of each that is drawn."""
    method: str = Field(description="the name of a method, or the path of a .py file that declares one")
    model: dict[str, Any] = Field(default_factory=dict, description="the settings of the method")
    options: dict[str, Any] = Field(
        default_factory=dict, description="what the trained network is told at inference; nothing is trained anew"
    )
    images_per_class: int | None = Field(
        default=None,
        gt=0,
        description="learn from a balanced part of the images: at most so many of a class; null: all",
    )
    init_from: Annotated[str | None, Reads("localiser", "refiner", "segmenter")] = Field(
        default=None,
        description="a trained stage whose weights to start from: all of them if it has the same method, those of its "
        "backbone otherwise; null: the backbone's own weights",
    )
    inputs: Annotated[dict[str, str], Reads()] = Field(
        default_factory=dict, description="fields that the method reads beside the image: name → stage that makes them"
    )
    augment: Augmentation = Field(description="random views of the images")
    train: TrainSettings = Field(description="optimiser, schedule and length of the training")

    def method_class(self) -> type[Method]:
        """The class of the method."""
        return find_method(self.method_kind, self.method)

    def method_name(self) -> str:
        """What the model's folder calls the class of the method, for `find_method`."""
        return self.method

    def method_settings(self, context: Context) -> Settings:
        """What the network is made with."""
        return self.method_class().Settings.model_validate(self.model)

    def inform(self, network: Method, context: Context) -> None:
        """Tell the network, before it is trained, what finished stages have found out about the data."""

    def given(self) -> list[str]:
        """The fields that this kind of stage reads by itself."""
        return []

    def own_readers(self, context: Context, folder: Path) -> list[Reader]:
        """Read the fields that are `given`; `folder` is that of this stage."""
        return []

    def with_weights(self, weights: str) -> Self:
        backbone = self.model.get("backbone", {})
        if backbone.get("weights") is None:
            return self
        return self.model_copy(update={"model": {**self.model, "backbone": {**backbone, "weights": weights}}})

    def checked(self, where: str) -> Self:
        path = absolute(self.method)
        method = find_method(self.method_kind, path)
        model = validate(method.Settings, self.model, f"{where}.model")
        options = validate(method.Options, self.options, f"{where}.options")
        check_inputs(self.method, method.fields, self.inputs, where, (*OF_SAMPLES, *self.given()))
        dumped = {"model": model.model_dump(mode="json"), "options": options.model_dump(mode="json")}
        return self.model_copy(update={"method": path, **dumped})

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings.pop("options", None)
        settings["train"].pop("min_steps", None)  # among the dependencies where it makes the training longer
        settings["method"] = Path(self.method).name
        settings["model"] = changed(self.method_class().Settings, self.model)
        return settings

    def versions(self) -> list[Any]:
        return [*super().versions(), *version_of(self.method_class())]

    def dependencies(self, context: Context) -> list[str]:
        samples, method = self.samples(context), self.method_class()
        weights = stamps.weights(self.model.get("backbone", {}).get("weights"))
        found = [str(context.seed), weights, stamps.images(samples)]
        if any(name in OF_SAMPLES for name in self._read_fields(method)):
            found.append(stamps.weak_labels(samples))
        found += (stamps.files(map(reader.path, samples)) for reader in self._folder_readers(context, method))
        return [*found, *self._few_images(context)]

    def _few_images(self, context: Context) -> list[str]:
        """What few images change: incomplete batches that are filled up, and the updates of further epochs."""
        order = self._order(context)
        longer = order.count > order.batch_size and order.fills_up and order.count % order.batch_size
        updates = self.train.total_steps(order)
        further = updates > self.train.model_copy(update={"min_steps": None}).total_steps(order)
        return [*(["filled batches"] if longer else []), *([f"{updates} updates"] if further else [])]

    def _order(self, context: Context) -> Order:
        return self.train.order(len(self.samples(context)), context.seed, self.images_per_draw)

    def reads_weak_labels(self) -> bool:
        return any(name in OF_SAMPLES for name in self._read_fields(self.method_class()))

    def prepare(self, context: Context) -> None:
        network = self.network(context)
        if self.init_from is not None:
            other = trained(context, self.init_from).network(context, load_weights=False)
            self._start_from(network, other)

    def run(self, context: Context, folder: Path) -> None:
        images = self.training_images(context, folder)
        network = self.network(context)
        if self.init_from is not None:
            self._start_from(network, load_model(context.folder(self.init_from) / MODEL_FOLDER).network)
        self.inform(network, context)
        train_network(
            context.fabric,
            network,
            self.wrapped(images, context),
            self.train,
            context.runtime,
            folder=folder,
            seed=context.seed,
            title=f"training {Path(self.method).stem}",
        )
        if isinstance(network, Concluding):
            network.conclude(_items(images), context.fabric.device)
        updates = self.train.total_steps(self._order(context))
        if fault := too_few(updates, self.train.min_steps):
            context.log("warning", stage=folder.relative_to(context.root).as_posix(), message=fault)
        if parallel.rank() == 0:
            model = Model(self.method_name(), context.dataset.classes, network, {}, context.long_side)
            save_model(folder / MODEL_FOLDER, model)

    def describe(self, context: Context, folder: Path) -> None:
        describe_model(
            folder / MODEL_FOLDER,
            inference=self.inference_of_model(),
            options=self.options,
            long_side=context.long_side,
        )

    def inference_of_model(self) -> dict[str, Any]:
        """How the trained model is evaluated and, unless told otherwise, used to predict."""
        return {}

    @classmethod
    def report_parts(cls, run: RunFolder, name: str) -> Mapping[str, Iterator[Markup]]:
        return {"Training": _length(run, name)}

    def samples(self, context: Context) -> Sequence[Sample]:
        """The samples of the training split that are learned from."""
        if self.images_per_class is None:
            return context.train
        return balanced_subset(context.train, self.images_per_class, context.seed)

    def training_images(self, context: Context, folder: Path) -> TrainingImages:
        """Random views of the samples, with the fields that the method reads."""
        method = self.method_class()
        return TrainingImages(
            self.samples(context),
            [*self.own_readers(context, folder), *self._readers(context, method, self._read_fields(method))],
            method.fields,
            self.augment,
            context.seed,
            Prepared(self.method_kind, self.method, self.model, whole=False),
            Prepared(self.method_kind, self.method, self.model, whole=True),
            context.dataset.classes.mirrored(),
            context.dataset.classes.deep,
        )

    def wrapped(self, images: TrainingImages, context: Context) -> TrainingSet:
        """The data set that the network is trained on, made of these images."""
        return images

    def at_inference(self, context: Context) -> tuple[dict[str, ImageField], list[Reader]]:
        """The fields that the network reads at inference, and what reads them of a sample."""
        method = self.method_class()
        fields = method.fields_at_inference()
        return fields, self._readers(context, method, fields)

    def stamps_at_inference(self, context: Context) -> list[str]:
        """Change with the files that the network reads at inference beside the images."""
        _, readers = self.at_inference(context)
        samples = context.weakly_labelled()
        return [stamps.files(map(r.path, samples)) for r in readers if isinstance(r, ReadFolder)]

    def network(self, context: Context, *, load_weights: bool = True) -> Method:
        """The method's network, with the weights that it starts from."""
        method = self.method_class()
        torch.manual_seed(context.seed)
        network = method(self.method_settings(context), context.dataset.classes.largest, load_weights=load_weights)
        network.options = method.Options.model_validate(self.options)
        return network

    def _read_fields(self, method: type[Method]) -> list[str]:
        """The fields of the method that this kind of stage does not read by itself."""
        return [name for name in method.fields if name not in self.given()]

    def _readers(
        self, context: Context, method: type[Method], names: Sequence[str] | Mapping[str, Any]
    ) -> list[Reader]:
        made = {name: stage for name, stage in self.inputs.items() if name in names}
        readers = stage_readers(context, made)
        free = [name for name in names if name not in self.inputs]
        if "tags" in free:
            readers.append(ReadTags(context.dataset.classes.largest))
        if "marks" in free:
            readers.append(ReadMarks())
        return [*readers, *(reader for reader in self._folder_readers(context, method) if reader.name in free)]

    def _folder_readers(self, context: Context, method: type[Method]) -> list[ReadFolder]:
        return folder_readers(method.fields, context.dataset.folder, (*self.inputs, *self.given()))

    def _start_from(self, network: Method, other: Method) -> None:
        try:
            network.start_from(other)
        except (RuntimeError, AttributeError):
            raise WeaksegError(
                f'The {self.method} cannot start from the weights of the stage "{self.init_from}", whose network is of '
                "another kind. Give both the same model.backbone.name, or set init_from to null."
            ) from None


def check_inputs(
    method: str, fields: Mapping[str, ImageField], inputs: Collection[str], where: str, known: Collection[str] = ()
) -> None:
    """Raise `WeaksegError` unless `inputs` name fields of the method, and all that nothing else gives: neither a
    folder nor the geometry of the view, and none of those that are `known` anyway."""
    for name in inputs:
        if name not in fields:
            read = ", ".join(fields) or "none"
            raise WeaksegError(f"{where}.inputs.{name}: {method} reads no such field. It reads: {read}.")
    for name, field in fields.items():
        if name not in (*known, *inputs) and field.folder is None and field.follows != "geometry":
            raise WeaksegError(
                f'{where}.inputs: {method} reads the field "{name}"; name the stage that makes it: '
                f"inputs: {{{name}: STAGE}}."
            )


def too_few(updates: int, needed: int | None) -> str | None:
    """A sentence where a training had fewer updates than it needs, which a recipe may say; None where it had enough."""
    if updates >= (needed or FEW_UPDATES):
        return None
    return (
        f"The training had {updates} updates, fewer than the {needed or FEW_UPDATES} that it needs to learn much. "
        "Give it more (train.min_steps, train.epochs) or add images."
    )


def _length(run: RunFolder, name: str) -> Iterator[Markup]:
    """Whether the training was long enough, and where epochs were added to make it so."""
    from weakseg.files import read_json_lines
    from weakseg.report.markup import note

    settings, records = run.stages[name]["train"], read_json_lines(run.root / name / LOG_NAME)
    if not records:
        return
    updates, epochs, needed = records[-1]["step"], records[-1]["epoch"], settings.get("min_steps")
    if fault := too_few(updates, needed):
        yield note(f"{name}: {fault}")
    elif updates == needed and settings["epochs"] and epochs > settings["epochs"]:
        yield note(
            f"{name}: the images are few, so there were {epochs:.0f} epochs instead of {settings['epochs']:g}, for the "
            f"{needed} updates that the training needs. --set {name}.train.min_steps=null trains for the epochs alone."
        )


def _items(images: TrainingImages) -> Iterator[Item]:
    """This process's images with their fields, as they are in their files."""
    mine = parallel.share(images.samples)
    with Progress("looking once more", len(mine)) as progress:
        for sample in mine:
            yield read_fields(sample, images.readers, images.fields)
            progress.advance()


# Objects rather than functions inside of functions: worker processes that are not forked get them by pickle.


@dataclass(frozen=True)
class Prepared:
    """What a method makes of a view (`methods.base.Method.prepare`) or of a `whole` image (`prepare_image`). It is
    known by its name, since a class from a file must be found anew in another process."""

    kind: type[Method]
    method: str
    model: dict[str, Any]
    whole: bool

    def __call__(self, view: Item) -> Item:
        return self._prepare(view)

    @cached_property
    def _prepare(self) -> Callable[[Item], Item]:
        method = find_method(self.kind, self.method)
        return partial(
            method.prepare_image if self.whole else method.prepare, method.Settings.model_validate(self.model)
        )


def stage_readers(context: Context, inputs: Mapping[str, str]) -> list[Reader]:
    """What reads the fields that other stages make: name → stage."""
    return [ReadArrays(name, type(context.stages[stage]), context.folder(stage)) for name, stage in inputs.items()]


def trained(context: Context, stage: str) -> Learning:
    """The stage that trains a network, by its name."""
    learning = context.stages[stage]
    assert isinstance(learning, Learning)
    return learning


@dataclass(frozen=True)
class ReadArrays:
    """A field that another stage made."""

    name: str
    stage: type[Stage]
    folder: Path

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        return {self.name: self.stage.array_of(self.folder, sample)}
