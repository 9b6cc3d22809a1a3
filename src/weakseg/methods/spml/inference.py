"""How SPML looks at images: sliding windows, and means over scales and mirror images.

Ke, Hwang, Yu, ICLR 2021 (arXiv 2105.00957); sizes and orders are those of the authors' program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.methods.spml.clustering import normalised
from weakseg.ops.activation import normalised_pixels

Size = tuple[int, int]
Network = Callable[[Tensor], Tensor]
"""Normalised images (N, 3, H, W) to something for each pixel, (N, K, H, W)."""


class Windows(NamedTuple):
    """Sizes (height, width) of sliding windows and of their steps; the whole image where a side is 0."""

    crop: Size
    stride: Size


def resized(maps: Tensor, size: Size) -> Tensor:
    """Maps (N, K, h, w) at `size`, bilinear, corners not on corners."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def unit_embeddings(embeddings: Network) -> Network:
    """The network that gives `embeddings` (N, D, h, w), with its output at the images' size and of length 1."""

    def embed(images: Tensor) -> Tensor:
        size = (int(images.shape[2]), int(images.shape[3]))
        return normalised(resized(embeddings(images), size).movedim(1, -1)).movedim(-1, 1)

    return embed


def padded(image: Tensor, crop: Size) -> Tensor:
    """A normalised image (3, H, W), with 0 at its right and bottom where it is smaller than `crop`."""
    rows, columns = (max(0, side - has) for side, has in zip(crop, image.shape[1:], strict=True))
    return F.pad(image, (0, columns, 0, rows))


def window_ends(side: int, crop: int, stride: int) -> list[int]:
    """Where windows end along an axis of `side` pixels, at least `crop`."""
    count = -(-(side - crop) // stride) + 1 if side > crop else 1
    return np.linspace(crop, side, count).astype(int).tolist()


def windowed(network: Network, image: Tensor, windows: Windows) -> Tensor:
    """The mean over all windows of what a network says of a normalised image (3, H, W), padded to a window at least:
    (K, max(H, crop), max(W, crop))."""
    if not all(windows.crop):
        return network(image[None])[0]
    image = padded(image, windows.crop)
    (height, width), (rows, columns) = windows.crop, windows.stride
    ends = [
        (y, x)
        for y in window_ends(int(image.shape[1]), height, rows)
        for x in window_ends(int(image.shape[2]), width, columns)
    ]
    total: Tensor | None = None
    count = image.new_zeros(image.shape[1:])
    for y, x in ends:
        place = (slice(y - height, y), slice(x - width, x))
        output = network(image[None, :, *place])[0]
        if total is None:
            total = output.new_zeros(len(output), *image.shape[1:])
        total[:, *place] += output
        count[place] += 1
    assert total is not None
    return total / count


def longer_side(size: Size, target: int) -> Size:
    """`size` with the longer side at `target`, in whole numbers."""
    ratio = min(target / size[0], target / size[1])
    return max(1, int(size[0] * ratio)), max(1, int(size[1] * ratio))


def scaled_views(image: Tensor, scales: Sequence[float], *, mirror: bool) -> Iterator[tuple[Tensor, bool]]:
    """A normalised image (3, H, W) at each scale, mirrored (True) and plain."""
    for scale in scales:
        size = (max(1, int(image.shape[1] * scale)), max(1, int(image.shape[2] * scale)))
        view = image if size == tuple(image.shape[1:]) else resized(image[None], size)[0]
        if mirror:
            yield view.flip(2), True
        yield view, False


def over_scales(of_view: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float], *, mirror: bool) -> Tensor:
    """The mean (K, H, W) over scales and mirror images of what `of_view` says of a view, (K, h, w), at its size."""
    size = (int(image.shape[1]), int(image.shape[2]))
    found = []
    for view, mirrored in scaled_views(image, scales, mirror=mirror):
        maps = of_view(view)
        found.append(maps.flip(2) if mirrored else maps)
        found[-1] = resized(found[-1][None], size)[0]
    return torch.stack(found).mean(0)


def mean_over_views(
    scores: Callable[[Tensor], Tensor],
    pictures: Sequence[Tensor],
    size: Size,
    device: torch.device,
    mirrored: Sequence[int] | None,
    then: Callable[[Tensor], Tensor],
) -> Tensor:
    """The mean (K, H, W) of what `then` makes of `scores` (K, h, w), resized to `size`, over `pictures` of one image,
    uint8 (3, h, w). With `mirrored`, the labels that labels are in a mirror image, mirror images are seen, too."""
    total, count = torch.zeros((), device=device), 0
    for picture in pictures:
        image = normalised_pixels(picture.to(device)[None])[0]
        for turned in (False,) if mirrored is None else (True, False):
            found = then(resized(scores(image.flip(2) if turned else image)[None], size)[0])
            if turned and mirrored is not None:
                found = found[list(mirrored)].flip(2)
            total, count = total + found, count + 1
    return total / count
