"""Batches for training. Which image comes when, and how it is augmented, is a function of (seed, epoch, place):
nothing depends on workers, processes, or on whether the run was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from weakseg.data.dataset import Sample
from weakseg.data.images import read_image
from weakseg.data.transforms import Augmentation, Image
from weakseg.errors import WeaksegError


class Draw(NamedTuple):
    """One image of one epoch: the `place`-th that is drawn, number `image` of the data set."""

    epoch: int
    place: int
    image: int


@dataclass(frozen=True)
class Order:
    """The order of `count` images in batches of `batch_size`, reshuffled every epoch.

    The last incomplete batch of an epoch is dropped (irnet.md section 4); where there are fewer images than a
    batch holds, the epoch's permutation is repeated to fill one batch.
    """

    count: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.count // self.batch_size)

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


class TaggedImages(TorchDataset[dict[str, Tensor]]):
    """Augmented images with their tags: `image` (3, crop, crop) float32, `tags` (C,) float32 of 0 and 1."""

    def __init__(self, samples: Sequence[Sample], num_classes: int, augmentation: Augmentation, seed: int) -> None:
        self.samples, self.num_classes, self.augmentation, self.seed = samples, num_classes, augmentation, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.view(*self.read(draw), generator(self.seed, draw))

    def read(self, draw: Draw) -> tuple[Image, Tensor]:
        """The image of a draw as it is in its file, uint8 (H, W, 3), and its tags."""
        sample = self.samples[draw.image]
        tags = torch.zeros(self.num_classes)
        tags[[label - 1 for label in sample.labels.present()]] = 1
        return read_image(sample.image), tags

    def view(self, image: Image, tags: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        """A random view of any image (H, W, 3) with its tags (C,)."""
        augmented, _ = self.augmentation(image, None, rng)
        return {"image": torch.as_tensor(augmented), "tags": tags}


class MaskedImages(TorchDataset[dict[str, Tensor]]):
    """Augmented images with label maps: `image` (3, crop, crop) float32, `labels` (crop, crop) uint8, 255 void.

    `read_labels` gives a sample's label map (H, W): its pseudo-mask, or its ground truth.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        read_labels: Callable[[Sample], npt.NDArray[np.uint8]],
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.samples, self.read_labels, self.augmentation, self.seed = samples, read_labels, augmentation, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        sample = self.samples[draw.image]
        image, labels = read_image(sample.image), self.read_labels(sample)
        if labels.shape != image.shape[:2]:
            raise WeaksegError(
                f"The mask of {sample.image} has {labels.shape[1]}×{labels.shape[0]} pixels, "
                f"the image {image.shape[1]}×{image.shape[0]}."
            )
        augmented, augmented_labels = self.augmentation(image, labels, generator(self.seed, draw))
        assert augmented_labels is not None
        return {"image": torch.as_tensor(augmented), "labels": torch.as_tensor(augmented_labels)}


class PreparedImages(TorchDataset[dict[str, Tensor]]):
    """What `prepare` makes of an image, with randomness of its own for each draw."""

    def __init__(
        self,
        samples: Sequence[Sample],
        prepare: Callable[[Sample, np.random.Generator], dict[str, Tensor]],
        seed: int,
    ) -> None:
        self.samples, self.prepare, self.seed = samples, prepare, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        return self.prepare(self.samples[draw.image], generator(self.seed, draw))


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
