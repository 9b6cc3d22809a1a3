"""Short texts that change when data do, for the keys of the stages that use them. Files count by size and time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from weakseg.data.dataset import Sample
from weakseg.data.images import file_stamp
from weakseg.errors import WeaksegError


def images(samples: Sequence[Sample]) -> str:
    """Changes with the images and their order; raises `WeaksegError` where one is missing."""
    return _digest((sample.name, _image_stamp(sample)) for sample in samples)


def weak_labels(samples: Sequence[Sample]) -> str:
    """Changes with the tags, boxes, points and scribbles of images."""
    labels = ((sample.name, sample.labels) for sample in samples)
    return _digest((name, sorted(of.present()), of.boxes, of.points, of.scribbles) for name, of in labels)


def tags(samples: Sequence[Sample]) -> str:
    """Changes with the tags themselves, and with whether anybody tagged an image."""
    given = ((sample.name, sample.labels.tags) for sample in samples)
    return _digest((name, None if of is None else sorted(of)) for name, of in given)


def ground_truth(samples: Sequence[Sample]) -> str:
    """Changes with the masks of images."""
    return _digest((sample.name, sample.mask.fingerprint() if sample.mask else None) for sample in samples)


def instances(samples: Sequence[Sample]) -> str:
    """Changes with the objects that are drawn in images, and with their masks."""
    drawn = [sample for sample in samples if sample.objects is not None]
    return _digest([ground_truth(drawn), *(file_stamp(sample.objects) for sample in drawn if sample.objects)])


def contexts(samples: Sequence[Sample]) -> str | None:
    """Changes with the context masks of images; None where there are none."""
    drawn = [sample for sample in samples if sample.context is not None]
    return _digest((sample.name, sample.context.fingerprint()) for sample in drawn if sample.context) if drawn else None


def corrections(samples: Sequence[Sample]) -> str | None:
    """Changes with the corrected masks of images; None where there are none."""
    drawn = [(sample.name, sample.corrected.fingerprint()) for sample in samples if sample.corrected]
    return _digest(drawn) if drawn else None


def files(paths: Iterable[Path]) -> str:
    """Changes with files; raises `WeaksegError` where one is missing."""
    return _digest(map(file_stamp, paths))


def weights(path: object) -> str:
    """Changes with a file of weights; "" for weights that are known by name, and for none."""
    file = Path(str(path)).expanduser()
    return file_stamp(file) if file.is_file() else ""


def _image_stamp(sample: Sample) -> str:
    try:
        scaled = f" at {sample.long_side}" if sample.long_side else ""
        return file_stamp(sample.image) + scaled
    except WeaksegError as error:
        raise WeaksegError(f"{error} `weakseg data check` finds all such problems at once.") from None


def _digest(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()
