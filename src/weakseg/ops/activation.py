"""Activation maps: over several scales and the mirror image, normalised, saved and brought back to full size.

The procedure is IRNet's (Ahn, Cho, Kwak, CVPR 2019, arXiv 1904.05044), which later methods share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from weakseg.errors import WeaksegError
from weakseg.files import read_npz, write_npz
from weakseg.labels import MAX_CLASSES

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
EPSILON = 1e-5

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]


def normalise_image(image: Pixels) -> npt.NDArray[np.float32]:
    """uint8 RGB (H, W, 3) to float32 (3, H, W): x / 255, less ImageNet's mean, over its standard deviation."""
    scaled = (image.astype(np.float32) / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def scaled_size(size: Size, scale: float) -> Size:
    """(H, W) times `scale`, rounded half to even, at least 1."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def resize_image(image: Pixels, scale: float) -> Pixels:
    """A uint8 RGB image (H, W, 3) at `scale`: Pillow's bicubic filter, sides rounded half to even, at least 1."""
    height, width = scaled_size((image.shape[0], image.shape[1]), scale)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def maps_per_scale(
    activation_maps: Callable[[Tensor], Tensor],
    images: Sequence[Pixels],
    scales: Sequence[float],
    device: torch.device,
) -> Iterator[Tensor]:
    """For each scale, maps of the images plus the mirrored maps of the mirrored images, (N, C, h, w) of any h, w.

    `activation_maps` takes normalised images (2N, 3, H, W); `images` are N uint8 images (H, W, 3) of one size.
    """
    for scale in scales:
        batch = torch.from_numpy(np.stack([normalise_image(resize_image(image, scale)) for image in images])).to(device)
        with torch.inference_mode():
            maps, mirrored = activation_maps(torch.cat([batch, batch.flip(3)])).float().chunk(2)
            maps = maps + mirrored.flip(3)
        yield maps


def resize_maps(maps: Tensor, view: Size, size: Size) -> Tensor:
    """Maps (N, C, any, any) of images of the size `view`, resized bilinearly (align_corners=False) to `size`."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def resize_through_view(maps: Tensor, view: Size, size: Size) -> Tensor:
    """Maps (N, C, any, any) at `size` as SEAM has them: brought to the size of the `view` that the network saw, corners
    on corners (align_corners=True), and from there to `size` (align_corners=False)."""
    at_view = F.interpolate(maps, view, mode="bilinear", align_corners=True)
    return F.interpolate(at_view, size, mode="bilinear", align_corners=False)


def sum_resized(maps: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """The sum of maps (N, C, any, any), each resized bilinearly (align_corners=False) to `size`."""
    return torch.stack([F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]).sum(0)


def multi_scale_maps(
    activation_maps: Callable[[Tensor], Tensor],
    images: Sequence[Pixels],
    scales: Sequence[float],
    device: torch.device,
    stride: int = 4,
    resize: Callable[[Tensor, Size, Size], Tensor] = resize_maps,
) -> Tensor:
    """Maps (N, C, ceil(H / stride), ceil(W / stride)) summed over scales and mirror images, on `device`.

    `activation_maps` takes normalised images (2N, 3, H, W) to maps (2N, C, h, w) ≥ 0. `images` are N uint8 RGB
    images (H, W, 3) of one size. The network should be in evaluation mode. `resize` brings the maps of a view from its
    size to that of the result.
    """
    height, width = images[0].shape[:2]
    size = (-(-height // stride), -(-width // stride))
    maps = maps_per_scale(activation_maps, images, scales, device)
    views = (scaled_size((height, width), scale) for scale in scales)
    return torch.stack([resize(m, view, size) for m, view in zip(maps, views, strict=True)]).sum(0)


def full_size_maps(maps: Iterable[Tensor], size: tuple[int, int], output_stride: int = 16) -> Tensor:
    """The sum of maps (N, C, any, any) of all scales at the size (H, W) of the image, as IRNet has it: each is resized
    to the next multiples of the network's stride, and the sum is cropped."""
    height, width = size
    padded = (-(-height // output_stride) * output_stride, -(-width // output_stride) * output_stride)
    return sum_resized(maps, padded)[..., :height, :width]


@dataclass(frozen=True)
class ActivationMaps:
    """The maps of the classes present in one image.

    `labels` int16 (K,), ascending in 1 … C; `maps` float (K, ceil(H / stride), ceil(W / stride)) in [0, 1]; `size`
    (H, W) of the image in pixels. A saved file has arrays of the same names; its maps are float16.

    Refined maps may begin with a map of label 0, which is the background's score at every place. Others are compared
    with a threshold.
    """

    labels: npt.NDArray[np.int16]
    maps: npt.NDArray[Any]
    size: tuple[int, int]
    stride: int = 4

    @property
    def has_background(self) -> bool:
        """Whether the first map is the background's score."""
        return len(self.labels) > 0 and int(self.labels[0]) == 0

    def save(self, path: Path) -> None:
        """Write an `.npz` file atomically; maps are rounded to float16. Raises ValueError for what `load` would
        refuse."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "labels": self.labels.astype(np.int16),
            "maps": self.maps.astype(np.float16),
            "size": np.array(self.size, np.int32),
            "stride": np.array(self.stride, np.int32),
        }
        fault = _fault(arrays)
        if fault:
            raise ValueError(f"no activation maps: {fault}")
        write_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> ActivationMaps:
        """Read what `save` wrote; raises `WeaksegError` that says what is wrong with any other file."""
        arrays = read_npz(path)
        fault = _fault(arrays)
        if fault:
            raise WeaksegError(f"{path} is no file of activation maps: {fault}. Delete it and run the stage again.")
        height, width = arrays["size"].tolist()
        return cls(arrays["labels"], arrays["maps"], (height, width), int(arrays["stride"]))

    def upsampled(self) -> npt.NDArray[np.float32]:
        """The maps at the size of the image, float32 (K, H, W): bilinear by the factor `stride` (align_corners=False),
        cropped at the right and the bottom."""
        height, width = self.size
        if len(self.labels) == 0:
            return np.zeros((0, height, width), np.float32)
        maps = torch.from_numpy(self.maps.astype(np.float32))[None]
        large = F.interpolate(maps, scale_factor=self.stride, mode="bilinear", align_corners=False)[0]
        return large[:, :height, :width].numpy()


def _fault(arrays: dict[str, npt.NDArray[Any]]) -> str | None:
    """What keeps named arrays from being activation maps; None where nothing does."""
    if set(arrays) != {"labels", "maps", "size", "stride"}:
        return f"it holds {', '.join(sorted(arrays)) or 'nothing'}, expected labels, maps, size, stride"
    labels, maps, size, stride = (arrays[name] for name in ("labels", "maps", "size", "stride"))
    kinds = (labels.dtype, maps.dtype, size.dtype.kind, stride.dtype.kind)
    if kinds != (np.int16, np.float16, "i", "i"):
        return (
            f"labels are {labels.dtype}, maps {maps.dtype}, size {size.dtype}, stride {stride.dtype}, "
            "expected int16, float16, int32, int32"
        )
    if size.shape != (2,) or stride.shape != () or size.min() < 1 or stride < 1:
        return f"size {size.tolist()} and stride {stride.tolist()} are not two positive numbers and one"
    expected = (len(labels) if labels.ndim == 1 else -1, *(-(-size // stride)).tolist())
    if labels.ndim != 1 or maps.shape != expected:
        return (
            f"labels have the shape {labels.shape} and maps {maps.shape}, which does not fit an image of "
            f"{size.tolist()} at stride {stride}"
        )
    if np.any(np.diff(labels) <= 0) or np.any(labels < 0) or np.any(labels > MAX_CLASSES):
        return f"labels {labels.tolist()} are not ascending numbers of classes"
    if not np.all((maps >= 0) & (maps <= 1)):  # NaN fails too
        return "maps have values outside 0 … 1"
    return None


def divide_by_maximum(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Maps (K, h, w) ≥ 0 as IRNet normalises them: each divided by (its maximum + ε). A map of zeros stays so."""
    return maps / (maps.max((1, 2), keepdims=True, initial=0) + np.float32(EPSILON))


def stretch_maps(maps: npt.NDArray[np.float32], *, clamp: bool = True) -> npt.NDArray[np.float32]:
    """Maps s (K, h, w) ≥ 0 as SEAM normalises them: (s - m - ε) / (M - m + ε) with the least m and greatest M of each.

    The original puts 0 in place of s where s < m + ε before it subtracts m, so the least place becomes negative, often
    by a lot, and all of a map that is 0 everywhere becomes -1. With `clamp` these are 0.
    """
    if len(maps) == 0:
        return maps
    highest, lowest = maps.max((1, 2), keepdims=True), maps.min((1, 2), keepdims=True)
    epsilon = np.float32(EPSILON)
    kept = np.where(maps < lowest + epsilon, np.float32(0), maps)
    stretched = (kept - lowest - epsilon) / (highest - lowest + epsilon)
    return stretched.clip(0) if clamp else stretched


def normalise_present(
    maps: npt.NDArray[np.float32],
    labels: Iterable[int],
    size: tuple[int, int],
    stride: int = 4,
    normalise: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] = divide_by_maximum,
) -> ActivationMaps:
    """Maps (C, h, w) ≥ 0 of all classes of an image of `size` (H, W), reduced to the labels present (1 … C) and brought
    to [0, 1] by `normalise`."""
    present = sorted(set(labels))
    if present and not 1 <= present[0] <= present[-1] <= len(maps):
        raise ValueError(f"labels {present} are not all in 1 … {len(maps)}")
    kept = maps[[label - 1 for label in present]].astype(np.float32)
    kept = normalise(kept)
    return ActivationMaps(np.array(present, np.int16), kept, size, stride)
