"""Superpixels of any image: graph segmentation, the features of a backbone, merging; and the same for files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from weakseg.data.images import read_image, write_superpixels
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_json
from weakseg.methods.base import Image
from weakseg.models.backbone import Backbone
from weakseg.models.norm import fold_norms
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.ops.activation import GREY, network_outputs
from weakseg.ops.resize import aligned_side
from weakseg.ops.superpixels import (
    Ids,
    Size,
    graph_segments,
    merge_segments,
    require_mergeable,
    segment_features,
)
from weakseg.pipeline.predict import Job, image_files
from weakseg.progress import Progress
from weakseg.settings import Settings
from weakseg.threads import pipelined

T = TypeVar("T")

SETTINGS_NAME = "superpixels.json"


class SuperpixelSettings(Settings):
    """How superpixels are made. The defaults are ICD's, but for its canvas (513); stage 4 of VGG-16 is its conv5_3."""

    sigma: float = Field(default=0.8, ge=0, le=100, description="smoothing before the segmentation, pixels")
    k: float = Field(default=75, gt=0, description="larger: larger segments")
    min_size: int = Field(default=75, ge=1, description="smaller segments join a neighbour, pixels")
    count: int = Field(default=64, ge=1, description="superpixels that are left after merging")
    stage: int = Field(default=4, ge=1, le=5, description="stage of the backbone whose features are compared")
    canvas: int = Field(default=1, ge=1, description="least height and width of what the backbone sees, pixels")


def superpixels(
    image: Image, backbone: Backbone | None, settings: SuperpixelSettings, device: torch.device | str = "cpu"
) -> Ids:
    """The superpixels (H, W) of an RGB image (H, W, 3), uint8: ids 0 … S - 1 in the order of first appearance.

    The segments of a graph segmentation are merged by the features of `backbone`, which must be on `device`, in
    evaluation mode; a superpixel may then have several parts. Without a backbone nothing is merged, and superpixels
    are 8-connected. Raises `WeaksegError` for more segments than can be merged.
    """
    ids = segmented(image, settings, merging=backbone is not None)
    return ids if backbone is None else dense_features(image, backbone, settings, device).merged(ids, settings.count)


def segmented(image: Image, settings: SuperpixelSettings, *, merging: bool) -> Ids:
    """The segments of an image before any merging; raises `WeaksegError` for more than can be merged, if `merging`."""
    ids = graph_segments(image, settings.sigma, settings.k, settings.min_size)
    if merging:
        require_mergeable(int(ids.max()) + 1)
    return ids


class DenseFeatures(NamedTuple):
    """Features (C, h, w) of a canvas of so many pixels, whose upper left part is the image."""

    values: npt.NDArray[np.float32]
    canvas: Size

    def merged(self, ids: Ids, count: int) -> Ids:
        """Segments (H, W) merged by these features until `count` are left."""
        return merge_segments(ids, segment_features(self.values, ids, self.canvas), count).ids


def dense_features(
    image: Image, backbone: Backbone, settings: SuperpixelSettings, device: torch.device | str
) -> DenseFeatures:
    """What `backbone` makes of an image, which is padded to where the corners of its features lie on corners."""
    stride = backbone.strides[settings.stage - 1]
    height, width = image.shape[:2]
    canvas = aligned_side(height, stride, settings.canvas), aligned_side(width, stride, settings.canvas)
    padded = np.full((1, *canvas, 3), GREY, np.uint8)
    padded[0, :height, :width] = image
    outputs = network_outputs(
        lambda batch: backbone(batch["image"])[settings.stage - 1], torch.from_numpy(padded), device, mirror=False
    )
    return DenseFeatures(outputs[0].cpu().numpy(), canvas)


def superpixels_of_many(
    items: Iterable[T],
    read: Callable[[T], tuple[Image, Ids] | None],
    write: Callable[[T, Ids], None],
    backbone: Backbone | None,
    settings: SuperpixelSettings,
    device: torch.device,
) -> Iterator[None]:
    """`superpixels` for many images; yields once for each that is written. Threads `read` images and their segments
    (`segmented`) ahead of the network and merge and `write` behind it. An item that `read` gives None for is left
    out."""

    def prepare(item: T) -> tuple[T, tuple[Image, Ids] | None]:
        return item, read(item)

    def compute(found: tuple[T, tuple[Image, Ids] | None]) -> Iterator[tuple[T, Ids, DenseFeatures | None]]:
        item, content = found
        if content is not None:
            image, ids = content
            yield item, ids, None if backbone is None else dense_features(image, backbone, settings, device)

    def finish(result: tuple[T, Ids, DenseFeatures | None]) -> None:
        item, ids, features = result
        write(item, ids if features is None else features.merged(ids, settings.count))

    return pipelined(prepare, compute, finish, items)


# Files ----------------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How many images have superpixels, for how many of them they were there before, and why others have none."""

    images: int
    before: int
    failures: list[str]


def superpixel_files(
    inputs: Sequence[Path],
    out: Path,
    settings: SuperpixelSettings,
    backbone: BackboneSettings | None,
    device: torch.device,
) -> Outcome:
    """Write `NAME.png` (`read_superpixels`) for every image, and `superpixels.json` with the settings. Files that are
    there already are kept. Without a backbone nothing is merged.

    An image that cannot be read does not keep the others from their superpixels. Raises `WeaksegError` where `out`
    holds files of these names that were made with other settings.
    """
    outputs = {job: out / job[1].parent / f"{job[1].name}.png" for job in image_files(inputs, out)}
    missing = [job for job, path in outputs.items() if not path.exists()]
    made_with = settings.model_dump() | {"backbone": None if backbone is None else backbone.model_dump()}
    if len(missing) < len(outputs) or (out / SETTINGS_NAME).exists():
        _require_same(out, made_with)
    network = None if backbone is None else ready_backbone(backbone, device)
    write_json(out / SETTINGS_NAME, made_with)
    failures: dict[Job, str] = {}

    def read(job: Job) -> tuple[Image, Ids] | None:
        try:
            image = read_image(job[0])
            return image, segmented(image, settings, merging=backbone is not None)
        except WeaksegError as error:
            text = str(error)
            failures[job] = text if str(job[0]) in text else f"{job[0]}: {text}"
            return None

    def write(job: Job, ids: Ids) -> None:
        write_superpixels(outputs[job], ids)

    with Progress("superpixels", len(outputs), done=len(outputs) - len(missing)) as progress:
        for _ in superpixels_of_many(missing, read, write, network, settings, device):
            progress.advance()
        progress.advance(len(failures))
    in_order = [failures[job] for job in missing if job in failures]
    return Outcome(len(outputs) - len(in_order), len(outputs) - len(missing), in_order)


def _require_same(out: Path, made_with: dict[str, Any]) -> None:
    """Raise `WeaksegError` unless the files in `out` were made with the same settings."""
    if not (out / SETTINGS_NAME).exists():
        raise WeaksegError(
            f"{out} holds files of the same names, but no {SETTINGS_NAME} that says how they were made. Choose another "
            "folder."
        )
    before = read_json(out / SETTINGS_NAME)
    if before != made_with:
        raise WeaksegError(f"{out} was made with other settings: {before}, now {made_with}. Choose another folder.")


def ready_backbone(settings: BackboneSettings, device: torch.device) -> Backbone:
    """A pretrained backbone on `device` in the form that is fastest for inference."""
    backbone = build_backbone(settings).eval()
    fold_norms(backbone)
    return backbone.to(device)
