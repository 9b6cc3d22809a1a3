"""What every reader returns: a `Dataset` of `Sample`s, grouped in splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from weakseg.data.images import image_size, read_bytes, read_image
from weakseg.errors import WeaksegError
from weakseg.labels import Classes, WeakLabels
from weakseg.ops.resize import shrink_image, within_long_side

if TYPE_CHECKING:
    from weakseg.ops.instances import Instances


UNLABELLED = "unlabelled"
"""The split of images of which nothing is known."""


class MaskSource(Protocol):
    """Where the ground truth of one image comes from: a PNG, polygons of an annotation file, …"""

    def read(self) -> npt.NDArray[np.uint8]:
        """The label map (H, W): 0 background, 1 … C classes, 255 void."""
        ...

    def fingerprint(self) -> str:
        """A short text that changes when the ground truth changes."""
        ...


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    `name` is unique in the data set and is used as the file name of everything a run writes for this image
    (it may contain spaces, any script, and `/` for sub-folders, but never leaves the folder). `objects` is a PNG whose
    values number the objects, 0 none and 255 void. `context` says of every pixel which class's context is seen there,
    0 for none (see `ops.context`); only data that were made for it have it. `corrected` is a mask that somebody made of
    a pseudo-mask (see `data.corrections`); it is learned from, never measured against. `long_side` is set where the
    image is worked on at a smaller size than that of its file (see `data.working_size`).
    """

    name: str
    image: Path
    labels: WeakLabels = field(default_factory=WeakLabels)
    mask: MaskSource | None = None
    objects: Path | None = None
    context: MaskSource | None = None
    corrected: MaskSource | None = None
    long_side: int | None = None

    def read_image(self) -> npt.NDArray[np.uint8]:
        """The image that is worked on, uint8 (H, W, 3)."""
        return shrink_image(read_image(self.image), self.long_side)

    def size(self) -> tuple[int, int]:
        """(H, W) of `read_image`, from the header of the file."""
        return within_long_side(image_size(self.image), self.long_side)

    def instances(self) -> Instances | None:
        """The true instances, None where nobody has drawn them. Raises `WeaksegError` for files that do not fit."""
        if self.objects is None or self.mask is None:
            return None
        from weakseg.ops.instances import drawn_instances

        objects, labels = read_bytes(self.objects), self.mask.read()
        if objects.shape != labels.shape:
            raise WeaksegError(
                f"{self.objects} has {objects.shape[1]}×{objects.shape[0]} pixels, the mask of {self.name} has "
                f"{labels.shape[1]}×{labels.shape[0]}. Both must be of the same image."
            )
        return drawn_instances(objects, labels)


@dataclass(frozen=True)
class Dataset:
    """Images of one set of classes. `splits` maps a split's name to its samples; a sample may be in several.

    `notes` are what the reader found worth knowing.
    """

    root: Path
    format: str
    classes: Classes
    splits: Mapping[str, Sequence[Sample]]
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that further files of the data set lie in."""
        return self.root if self.root.is_dir() else self.root.parent

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of a split; an unknown name raises with the names there are.

        "train" is the only split of labelled images there is, where none has the name.
        """
        if name == "train" and name not in self.splits:
            name = self.only_split() or name
        if name not in self.splits:
            known = ", ".join(f"{split} ({len(samples)} images)" for split, samples in self.splits.items())
            raise WeaksegError(f'{self.root} has no split "{name}". It has: {known or "none"}.')
        return self.splits[name]

    def only_split(self) -> str | None:
        """The name of the only split there is besides "unlabelled", None where there are several."""
        names = [name for name in self.splits if name != UNLABELLED]
        return names[0] if len(names) == 1 else None
