"""Batches for training. Which image comes when, and how it is augmented, is a function of (seed, epoch, place):
nothing depends on workers, processes, or on whether the run was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from weakseg.data.dataset import Sample
from weakseg.data.images import image_size, read_bytes
from weakseg.data.transforms import Augmentation
from weakseg.errors import WeaksegError
from weakseg.ops.fields import ImageField
from weakseg.ops.resize import resize_bilinear, resize_labels, shrink_marks


class Draw(NamedTuple):
    """One image of one epoch: the `place`-th that is drawn, number `image` of the data set."""

    epoch: int
    place: int
    image: int


@dataclass(frozen=True)
class Order:
    """The order of `count` images in batches of `batch_size`, reshuffled every epoch.

    Of an epoch of few batches, the last incomplete one is filled up from the beginning of the epoch's permutation,
    which is repeated where there are fewer images than a batch holds; that of a longer epoch is dropped.
    """

    FEW_BATCHES: ClassVar[int] = 10

    count: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.count // self.batch_size) if self.fills_up else self.count // self.batch_size

    @property
    def fills_up(self) -> bool:
        """Whether an incomplete batch is filled up rather than dropped."""
        return self.count < self.FEW_BATCHES * self.batch_size

    def batch(self, step: int) -> list[Draw]:
        """The draws of batch number `step` (0, 1, …), the same whenever and wherever it is asked for."""
        epoch, part = divmod(step, self.steps_per_epoch)
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        places = range(part * self.batch_size, (part + 1) * self.batch_size)
        return [Draw(epoch, place, int(permutation[place % self.count])) for place in places]


class Batches(Sampler[list[Draw]]):
    """One process's micro-batches of the updates `first … last - 1`, `accumulate` of them for each update.

    Together, the processes and their micro-batches draw every image of an update's batch once.
    """

    def __init__(
        self, order: Order, first: int, last: int, *, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        if order.batch_size % (world * accumulate):
            raise WeaksegError(
                f"A batch of {order.batch_size} images cannot be shared equally by {world} processes with "
                f"{accumulate} micro-batches each; choose a batch size that {world * accumulate} divides."
            )
        self.order, self.first, self.last = order, first, last
        self.accumulate, self.rank, self.world = accumulate, rank, world

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first, self.last):
            mine = self.order.batch(step)[self.rank :: self.world]
            for part in range(self.accumulate):
                yield mine[part :: self.accumulate]

    def __len__(self) -> int:
        return (self.last - self.first) * self.accumulate


Reader = Callable[[Sample], Mapping[str, npt.NDArray[Any]]]
"""Reads some fields of a sample, in the geometry of its image."""
Prepare = Callable[[dict[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]


def unchanged(item: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Prepare nothing."""
    return item


@dataclass(frozen=True)
class TrainingImages(TorchDataset[dict[str, Tensor]]):
    """Random views of images: `image` (3, crop, crop) float32 and the fields that a method reads, each with its view.
    Labels are uint8, or int32 where there are more than 254 classes (`deep`).

    `readers` read the `fields` of a sample. `prepare_image` and `prepare` make of an image and of a view what the
    method learns from (`methods.base.Method`).
    """

    samples: Sequence[Sample]
    readers: Sequence[Reader]
    fields: Mapping[str, ImageField]
    augmentation: Augmentation
    seed: int
    prepare: Prepare = unchanged
    prepare_image: Prepare = unchanged
    mirrored_labels: Sequence[int] = ()
    deep: bool = False

    images_per_draw: ClassVar[int] = 1

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.view(self.read(draw), generator(self.seed, draw))

    def read(self, draw: Draw) -> dict[str, npt.NDArray[Any]]:
        """The image of a draw as its file has it, uint8 (H, W, 3), and its fields."""
        return dict(self.prepare_image(read_fields(self.samples[draw.image], self.readers, self.fields)))

    def view(self, arrays: Mapping[str, npt.NDArray[Any]], rng: np.random.Generator) -> dict[str, Tensor]:
        """A random view of any image with its fields."""
        seen = self.prepare(self.augmentation(arrays, self.fields, rng, self.mirrored_labels))
        # An image whose own labels fit 8 bits may share a batch with one whose labels do not.
        return {name: torch.as_tensor(_widened(array) if self.deep else array) for name, array in seen.items()}


def _widened(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.int32) if array.dtype in (np.uint8, np.uint16) else array


def read_fields(
    sample: Sample, readers: Sequence[Reader], fields: Mapping[str, ImageField]
) -> dict[str, npt.NDArray[Any]]:
    """`image` uint8 (H, W, 3) and the fields of a sample; those of the size of its file are brought to the size that is
    worked on. Raises `WeaksegError` for a field of another size than the image."""
    image = sample.read_image()
    arrays: dict[str, npt.NDArray[Any]] = {"image": image}
    for reader in readers:
        arrays.update(reader(sample))
    native = image_size(sample.image) if sample.long_side else image.shape[:2]
    for name, field in fields.items():
        if field.spatial and image.shape[:2] != native == arrays[name].shape[-2:]:
            resize = resize_bilinear if field.follows == "maps" else resize_labels
            arrays[name] = resize(arrays[name], image.shape[:2])
        if field.spatial and (size := arrays[name].shape[-2:]) != image.shape[:2]:
            files = [f" ({r.path(sample)})" for r in readers if isinstance(r, ReadFolder) and r.name == name]
            raise WeaksegError(
                f"The {name} of {sample.image}{''.join(files)} have {size[1]}×{size[0]} pixels, "
                f"the image {image.shape[1]}×{image.shape[0]}; their sizes must be equal."
            )
    return arrays


# Readers are objects, not functions inside of functions: worker processes that are not forked get them by pickle.


@dataclass(frozen=True)
class ReadTags:
    """`tags` (C,): the classes that any weak label of the sample names."""

    num_classes: int

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        tags = np.zeros(self.num_classes, np.float32)
        tags[[label - 1 for label in sample.labels.present()]] = 1
        return {"tags": tags}


@dataclass(frozen=True)
class ReadMarks:
    """`marks` (H, W): the points and scribbles of the sample as a partial label map, 255 elsewhere."""

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        from weakseg.data.simulate import rasterise

        marks = rasterise(sample.labels, image_size(sample.image))
        return {"marks": shrink_marks(marks, sample.size()) if sample.long_side else marks}


@dataclass(frozen=True)
class ReadFolder:
    """A field whose files NAME.png lie in a folder (see `ops.fields.ImageField`)."""

    name: str
    field: ImageField
    folder: Path

    def __call__(self, sample: Sample) -> dict[str, npt.NDArray[Any]]:
        values = read_bytes(self.path(sample))
        return {self.name: values[None].astype(np.float32) / 255 if self.field.follows == "maps" else values}

    def path(self, sample: Sample) -> Path:
        """Where the file of a sample lies."""
        return self.folder / f"{sample.name}.png"


def folder_readers(fields: Mapping[str, ImageField], root: Path, besides: Container[str]) -> list[ReadFolder]:
    """What reads those of `fields` that lie in folders below `root`, `besides` some by name."""
    return [
        ReadFolder(name, field, root / field.folder)
        for name, field in fields.items()
        if field.folder is not None and name not in besides
    ]


def generator(seed: int, draw: Draw, stream: int = 1) -> np.random.Generator:
    """The randomness of one augmentation; its own stream, apart from the order's and from other streams."""
    return np.random.default_rng([seed, draw.epoch, draw.place, stream])


def balanced_subset(samples: Sequence[Sample], per_class: int, seed: int) -> list[Sample]:
    """At most `per_class` random images of every class, in the given order; classes that share images share them.

    An image is taken if it is among the first `per_class` of a random order for any class it contains.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(samples))
    taken: set[int] = set()
    for label in sorted(set().union(*(sample.labels.present() for sample in samples))):
        with_class = [int(i) for i in order if label in samples[int(i)].labels.present()]
        taken.update(with_class[:per_class])
    return [samples[i] for i in sorted(taken)]
