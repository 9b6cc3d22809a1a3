"""Activation maps: over several scales and the mirror image, normalised, saved and brought back to full size.

The procedure is IRNet's (Ahn, Cho, Kwak, CVPR 2019, arXiv 1904.05044), which later methods share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
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
from weakseg.labels import VOID
from weakseg.ops.fields import Batch, ImageField, as_seen

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
GREY = 127
"""Of a uint8 image: what Caffe's networks of the time were given beside an image."""
EPSILON = 1e-5

PIXELS_AT_ONCE = 1 << 23
PIXELS_AT_ONCE_ON_CPU = 1 << 18
"""How many pixels of images go through a network together. On a CPU more than one photograph is slower: the features of
its first layers, hundreds of bytes a pixel, leave the cache, and each layer asks the system for new memory."""

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


Network = Callable[[Batch], Tensor]
"""Takes a batch with normalised images (n, 3, h, w) and whatever fields it reads to an output for each image."""


@dataclass(frozen=True)
class Views:
    """N images of one `size` (H, W) at several scales: `scaled` has uint8 (N, h, w, 3) for each scale.

    `fields` say what else a network reads at inference, `values` are these fields (N, …) of the whole images.
    """

    size: Size
    scaled: tuple[Tensor, ...]
    fields: Mapping[str, ImageField] = dataclass_field(default_factory=dict)
    values: Mapping[str, Tensor] = dataclass_field(default_factory=dict)

    @classmethod
    def of(
        cls,
        images: Sequence[Pixels],
        scales: Sequence[float],
        device: torch.device | str = "cpu",
        fields: Mapping[str, ImageField] | None = None,
        values: Sequence[Mapping[str, npt.NDArray[Any]]] = (),
    ) -> Views:
        """Resize uint8 images (H, W, 3) of one size; `values` hold the `fields` of each. Needs no network, so threads
        can do it ahead of one; for CUDA the pixels are put where a device can fetch them by itself."""
        scaled = (torch.from_numpy(np.stack([resize_image(image, scale) for image in images])) for scale in scales)
        if torch.device(device).type == "cuda":
            scaled = (images.pin_memory() for images in scaled)
        fields = fields or {}
        # The geometry is that of the view.
        given = [name for name, field in fields.items() if field.follows != "geometry"]
        together = {name: torch.from_numpy(np.stack([item[name] for item in values])) for name in given}
        return cls((images[0].shape[0], images[0].shape[1]), tuple(scaled), fields, together)


def network_outputs(
    network: Network, images: Tensor, device: torch.device | str, *, mirror: bool, views: Views | None = None
) -> Tensor:
    """Outputs (N, C, h, w) of `network` for uint8 images (N, H, W, 3), on `device`, without gradients. With `mirror`,
    the mirrored outputs for the mirrored images are added.

    The network gets as many images at a time as their size and the kind of device allow, and with them the fields of
    the `views` that the images are of. An output may also have no sides (N, C), without `mirror`.
    """
    with torch.inference_mode():
        inputs = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
        batch = _with_fields(inputs, views, mirrored=False)
        if mirror:
            turned = _with_fields(inputs.flip(3), views, mirrored=True)
            batch = {name: torch.cat([values, turned[name]]) for name, values in batch.items()}
        pixels = PIXELS_AT_ONCE_ON_CPU if inputs.device.type == "cpu" else PIXELS_AT_ONCE
        outputs = torch.cat(
            [
                network({**part, "image": normalised_pixels(part["image"])}).float()
                for part in _split(batch, max(1, pixels // (inputs.shape[2] * inputs.shape[3])))
            ]
        )
        if mirror:
            outputs, mirrored = outputs.chunk(2)
            outputs = outputs + mirrored.flip(3)
        return outputs


def _with_fields(images: Tensor, views: Views | None, *, mirrored: bool) -> dict[str, Tensor]:
    """The batch of images (N, 3, h, w) of some views, with their fields at this size."""
    if views is None or not views.fields:
        return {"image": images}
    values = {name: value.to(images.device, non_blocking=True) for name, value in views.values.items()}
    size = (images.shape[2], images.shape[3])
    return {"image": images, **as_seen(views.fields, {"image": images, **values}, size, mirrored=mirrored)}


def _split(batch: Mapping[str, Tensor], count: int) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of at most `count` images."""
    parts = (values.split(count) for values in batch.values())
    for part in zip(*parts, strict=True):
        yield dict(zip(batch, part, strict=True))


def normalised_pixels(images: Tensor) -> Tensor:
    """`normalise_image` for uint8 tensors (N, 3, H, W), where they are."""
    mean, std = (torch.from_numpy(values).to(images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return images.float().div_(255).sub_(mean).div_(std)


def maps_per_scale(
    activation_maps: Network, views: Views, device: torch.device | str, *, mirror: bool = True
) -> Iterator[Tensor]:
    """For each scale, maps of the images plus, if `mirror`, the mirrored maps of the mirrored images, (N, C, h, w) of
    any h, w."""
    for images in views.scaled:
        yield network_outputs(activation_maps, images, device, mirror=mirror, views=views)


def resize_maps(maps: Tensor, view: Size, size: Size) -> Tensor:
    """Maps (N, C, any, any) of images of the size `view`, resized bilinearly (align_corners=False) to `size`."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def resize_through_view(maps: Tensor, view: Size, size: Size) -> Tensor:
    """Maps (N, C, any, any) at `size` as SEAM has them: brought to the size of the `view` that the network saw, corners
    on corners (align_corners=True), and from there to `size` (align_corners=False)."""
    at_view = F.interpolate(maps, view, mode="bilinear", align_corners=True)
    return F.interpolate(at_view, size, mode="bilinear", align_corners=False)


@torch.inference_mode()
def multi_scale_maps(
    activation_maps: Network,
    views: Views,
    labels: Sequence[Sequence[int]],
    device: torch.device | str,
    stride: int = 4,
    resize: Callable[[Tensor, Size, Size], Tensor] = resize_maps,
    *,
    mirror: bool = True,
) -> list[Tensor]:
    """For each image, the maps (K, ceil(H / stride), ceil(W / stride)) of its `labels` (1 … C, in their order), summed
    over scales and, if `mirror`, mirror images; they stay on `device`.

    `activation_maps` gives maps (n, C, h, w) ≥ 0 of all classes; its network should be in evaluation mode. `resize`
    brings maps (K of all images, 1, h, w) of a view to the size of the result: only those of present classes are.
    """
    height, width = views.size
    size = (-(-height // stride), -(-width // stride))
    present = [(image, label - 1) for image, group in enumerate(labels) for label in group]
    image_index, class_index = torch.tensor(present, dtype=torch.long, device=device).reshape(-1, 2).unbind(1)
    total = torch.zeros((len(present), 1, *size), device=device)
    for images, maps in zip(views.scaled, maps_per_scale(activation_maps, views, device, mirror=mirror), strict=True):
        if any(not 1 <= label <= maps.shape[1] for group in labels for label in group):
            raise ValueError(f"labels {list(labels)} are not all in 1 … {maps.shape[1]}")
        view = (images.shape[1], images.shape[2])
        total += resize(maps[image_index, class_index][:, None], view, size)
    return list(total[:, 0].split([len(group) for group in labels]))


@dataclass(frozen=True)
class ActivationMaps:
    """The maps of the classes present in one image.

    `labels` int16 (K,), ascending in 1 … C; `maps` float (K, ceil(H / stride), ceil(W / stride)) in [0, 1]; `size`
    (H, W) of the image in pixels. A saved file has arrays of the same names; its maps are float16.

    Refined maps may begin with a map of label 0, which is the background's score at every place. Others are compared
    with a threshold. Maps that are `signed` are scores of any size instead, float32 in files, for a rule of their
    method to make masks from. A `threshold` that was chosen for them is not in the file.
    """

    labels: npt.NDArray[np.int16]
    maps: npt.NDArray[Any]
    size: tuple[int, int]
    stride: int = 4
    signed: bool = False
    threshold: float | None = None

    @property
    def has_background(self) -> bool:
        """Whether the first map is the background's score."""
        return len(self.labels) > 0 and int(self.labels[0]) == 0

    def unsigned(self) -> ActivationMaps:
        """The positive part of signed maps, each over its maximum; maps in [0, 1] as they are."""
        if not self.signed:
            return self
        return replace(self, maps=divide_by_maximum(self.maps.clip(min=0)), signed=False)

    def save(self, path: Path) -> None:
        """Write an `.npz` file atomically; maps in [0, 1] are rounded to float16. Raises ValueError for maps that
        `load` would refuse."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "labels": self.labels.astype(np.int16),
            "maps": self.maps.astype(np.float32 if self.signed else np.float16),
            "size": np.array(self.size, np.int32),
            "stride": np.array(self.stride, np.int32),
        }
        if self.signed:
            arrays["signed"] = np.array(True)
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
        return cls(arrays["labels"], arrays["maps"], (height, width), int(arrays["stride"]), "signed" in arrays)

    def upsampled(self) -> npt.NDArray[np.float32]:
        """The maps at the size of the image, float32 (K, H, W): bilinear by the factor `stride` (align_corners=False),
        cropped at the right and the bottom."""
        return self.at_stride(1).maps

    def at_stride(self, stride: int) -> ActivationMaps:
        """The same maps, float32, in smaller cells, like `upsampled`. `stride` divides that of the maps."""
        height, width = (-(-side // stride) for side in self.size)
        if len(self.labels) == 0:
            return replace(self, maps=np.zeros((0, height, width), np.float32), stride=stride)
        maps = torch.from_numpy(self.maps.astype(np.float32))[None]
        finer = F.interpolate(maps, scale_factor=self.stride // stride, mode="bilinear", align_corners=False)[0]
        return replace(self, maps=finer[:, :height, :width].numpy(), stride=stride)


def _fault(arrays: dict[str, npt.NDArray[Any]]) -> str | None:
    """What keeps named arrays from being activation maps; None where nothing does."""
    signed = "signed" in arrays
    if set(arrays) - {"signed"} != {"labels", "maps", "size", "stride"}:
        return f"it holds {', '.join(sorted(arrays)) or 'nothing'}, expected labels, maps, size, stride"
    labels, maps, size, stride = (arrays[name] for name in ("labels", "maps", "size", "stride"))
    kinds = (labels.dtype, maps.dtype, size.dtype.kind, stride.dtype.kind)
    if kinds != (np.int16, np.float32 if signed else np.float16, "i", "i"):
        return (
            f"labels are {labels.dtype}, maps {maps.dtype}, size {size.dtype}, stride {stride.dtype}, "
            f"expected int16, {'float32' if signed else 'float16'}, int32, int32"
        )
    if size.shape != (2,) or stride.shape != () or size.min() < 1 or stride < 1:
        return f"size {size.tolist()} and stride {stride.tolist()} are not two positive numbers and one"
    expected = (len(labels) if labels.ndim == 1 else -1, *(-(-size // stride)).tolist())
    if labels.ndim != 1 or maps.shape != expected:
        return (
            f"labels have the shape {labels.shape} and maps {maps.shape}, which does not fit an image of "
            f"{size.tolist()} at stride {stride}"
        )
    if np.any(np.diff(labels) <= 0) or np.any(labels < 0) or np.any(labels == VOID):
        return f"labels {labels.tolist()} are not ascending numbers of classes"
    if signed:
        return None if np.isfinite(maps).all() else "maps have values that are not finite"
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


Normalise = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def normalise_maps(
    maps: npt.NDArray[np.float32],
    labels: Sequence[int],
    size: Size,
    stride: int = 4,
    normalise: Normalise | None = divide_by_maximum,
) -> ActivationMaps:
    """Maps (K, h, w) ≥ 0 of the `labels` present in an image of `size` (H, W), brought to [0, 1] by `normalise`; None
    leaves them as they are, of any sign. The map of a class that nothing speaks for is zero."""
    if normalise is None:
        return ActivationMaps(np.array(labels, np.int16), maps, size, stride, signed=True)
    return ActivationMaps(np.array(labels, np.int16), normalise(maps), size, stride)
