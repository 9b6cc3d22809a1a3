"""Stages that train a network: where it starts, what it reads, how it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

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
from weakseg.settings import changed, validate
from weakseg.training import TrainingSet, train_network

OF_SAMPLES = ("tags", "marks")
"""The fields that are known of every sample with weak labels."""


class Learning(Stage):
    """Base of the stages that train a network."""

    method_kind: ClassVar[type[Method]]
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
        self._check_fields(method, where)
        dumped = {"model": model.model_dump(mode="json"), "options": options.model_dump(mode="json")}
        return self.model_copy(update={"method": path, **dumped})

    def _check_fields(self, method: type[Method], where: str) -> None:
        for name in self.inputs:
            if name not in method.fields:
                known = ", ".join(method.fields) or "none"
                raise WeaksegError(f"{where}.inputs.{name}: {self.method} reads no such field. It reads: {known}.")
        known_fields = {*OF_SAMPLES, *self.given(), *self.inputs}
        for name, field in method.fields.items():
            if name not in known_fields and field.folder is None and field.follows != "geometry":
                raise WeaksegError(
                    f'{where}.inputs: {self.method} reads the field "{name}"; name the stage that makes it: '
                    f"inputs: {{{name}: STAGE}}."
                )

    def settings_of_artifact(self) -> dict[str, Any]:
        settings = super().settings_of_artifact()
        settings.pop("options", None)
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
        return found

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
        if parallel.rank() == 0:
            save_model(folder / MODEL_FOLDER, Model(self.method, context.dataset.classes, network, {}))

    def describe(self, folder: Path) -> None:
        describe_model(folder / MODEL_FOLDER, inference=self.inference_of_model(), options=self.options)

    def inference_of_model(self) -> dict[str, Any]:
        """How the trained model is evaluated and, unless told otherwise, used to predict."""
        return {}

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
        settings = method.Settings.model_validate(self.model)
        torch.manual_seed(context.seed)
        network = method(settings, len(context.dataset.classes), load_weights=load_weights)
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
            readers.append(ReadTags(len(context.dataset.classes)))
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
