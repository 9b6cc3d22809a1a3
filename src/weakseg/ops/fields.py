"""Fields: the named arrays that a network reads beside the image, and how each of them follows a view of the image.

A view shows an image at some size, cropped and perhaps mirrored. A method declares its fields (`methods.base.Method`);
training (`data.transforms.Augmentation`) and inference (`as_seen`) then hand each of them on together with the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.labels import VOID
from weakseg.ops.resize import resize_labels

Follows = Literal["whole", "labels", "ids", "maps", "geometry"]
Batch = Mapping[str, Tensor]
"""`image` (N, 3, H, W) float32, normalised, and fields by their names, N of each."""


@dataclass(frozen=True)
class ImageField:
    """How an array of one image follows a view of it.

    whole       belongs to the image, not to places in it, and stays as it is: tags, vectors, maps with a frame of
                their own.
    labels      (H, W) whole numbers; nearest neighbour, `outside` where the view leaves the image.
    ids         (H, W) whole numbers that are only compared with each other (superpixels); nearest neighbour, one id
                more than there are where the view leaves the image.
    maps        (K, H, W) float32; bilinear, 0 where the view leaves the image.
    geometry    made by the view itself, float32 (5,): top, left, bottom, right of the view in parts of the image's
                height and width (below 0 and above 1 outside of the image), and 1 where it is mirrored, else 0.

    `at_inference` says that the network reads the field at inference as well. `folder` is a folder beside the images
    whose files NAME.png hold the field, 8-bit grey: values 0 to 255 of labels and ids, 0 to 1 of maps. `partial` labels
    tell unlabelled pixels (254) from void ones; for all others both are void.
    """

    follows: Follows
    outside: int = VOID
    at_inference: bool = False
    folder: str | None = None
    partial: bool = False

    @property
    def spatial(self) -> bool:
        """Whether it has the size of the image."""
        return self.follows in ("labels", "ids", "maps")


TAGS = ImageField("whole")
"""(C,) float32: 1 for classes that the weak labels name, else 0."""
LABELS = ImageField("labels")
"""(H, W): 0 background, 1 … C, 255 void."""
PARTIAL_LABELS = ImageField("labels", partial=True)
"""(H, W): 0 background, 1 … C, 254 unlabelled, 255 void."""
GEOMETRY = ImageField("geometry", at_inference=True)


def as_seen(
    fields: Mapping[str, ImageField], values: Batch, size: tuple[int, int], *, mirrored: bool
) -> dict[str, Tensor]:
    """Fields of N whole images, as they follow these images to `size` (H, W) and, if `mirrored`, from left to right.

    `values` hold the fields (N, …) in the geometry of the images; one of the kind "geometry" may be left out.
    """
    seen = {}
    for name, field in fields.items():
        if field.follows == "geometry":
            seen[name] = _whole_geometry(values["image"], mirrored)
        elif field.follows == "whole":
            seen[name] = values[name]
        else:
            resized = _resized(field, values[name], size)
            seen[name] = resized.flip(-1) if mirrored else resized
    return seen


def in_view(maps: Tensor, geometry: Tensor, size: tuple[int, int]) -> Tensor:
    """What views show of maps that have the frame of the whole image: (N, K, h, w) at a `size`, 0 outside of the image.

    `geometry` (N, 5) is that of the views, see `ImageField`. Bilinear between the centres of cells; for a whole image,
    `interpolate` with align_corners=False.
    """
    top, left, bottom, right, mirrored = geometry.to(maps).unbind(1)
    rows, columns = (
        (torch.arange(side, dtype=maps.dtype, device=maps.device) + 0.5) / side for side in (size[0], size[1])
    )
    across = torch.where(mirrored[:, None] > 0, 1 - columns, columns)
    y = top[:, None] + rows * (bottom - top)[:, None]
    x = left[:, None] + across * (right - left)[:, None]
    places = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], dim=3)
    shown = F.grid_sample(maps, 2 * places - 1, mode="bilinear", padding_mode="border", align_corners=False)
    return shown * ((places >= 0) & (places <= 1)).all(3)[:, None]


def _whole_geometry(images: Tensor, mirrored: bool) -> Tensor:
    return torch.tensor([0.0, 0.0, 1.0, 1.0, float(mirrored)], device=images.device).expand(len(images), -1)


def _resized(field: ImageField, values: Tensor, size: tuple[int, int]) -> Tensor:
    if field.follows == "maps":
        return F.interpolate(values, size, mode="bilinear", align_corners=False)
    return resize_labels(values, size)
