"""Joint augmentation of an image and the fields that follow it, in the ways of the papers' programs.

`pillow`         Pillow's bicubic filter on 8-bit images, sizes rounded to the nearest integer (half to even), an image
                 smaller than the crop is placed at random in it.
`torch`          bilinear without antialiasing in float, sizes rounded down, an image smaller than the crop is placed in
                 the upper left corner.
`opencv_cubic`   as `pillow`, but with OpenCV's cubic interpolation, and label maps with OpenCV's nearest one.
`opencv_linear`  OpenCV's linear interpolation on 8-bit images and nearest one on label maps, sizes rounded half up; an
                 image smaller than the crop is mirrored first, then placed in the upper left corner.
`opencv_float`   as `torch`, but an image is mirrored first, and label maps are resampled with OpenCV's nearest one.

Label maps are otherwise resized with `resize_labels`. What the image does not cover is the mean colour (0 after
normalisation) and void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from weakseg.data.opencv import scale_cubic, scale_linear, scale_nearest, shift_hsv
from weakseg.labels import VOID
from weakseg.ops.activation import GREY, IMAGENET_MEAN, IMAGENET_STD
from weakseg.ops.fields import ImageField
from weakseg.ops.resize import resize_labels
from weakseg.settings import Settings

Style = Literal["pillow", "torch", "opencv_cubic", "opencv_linear", "opencv_float"]
FLOATING = ("torch", "opencv_float")
"""The styles that resample images in float."""
CORNERED = ("torch", "opencv_linear", "opencv_float")
"""The styles that place a small image in the upper left corner of the crop."""
Size: TypeAlias = tuple[int, int]
"""(height, width) in pixels."""
Array: TypeAlias = npt.NDArray[Any]
Image: TypeAlias = npt.NDArray[np.uint8]
FloatImage: TypeAlias = npt.NDArray[np.float32]

# (x / 255 - mean) / std as one scale and one shift per channel.
_SCALE = (1 / (255 * IMAGENET_STD))[:, None, None]
_SHIFT = -(IMAGENET_MEAN / IMAGENET_STD)[:, None, None]
GREY_WEIGHTS = np.array([0.3, 0.59, 0.11], np.float32)
PADDING: Mapping[str, Any] = {"mean": 0, "black": _SHIFT, "grey": GREY * _SCALE + _SHIFT}
"""The colours outside of an image, normalised."""


class Crop(NamedTuple):
    """A square crop: `height` × `width` pixels from (`top`, `left`) of the image come to (`crop_top`, `crop_left`)
    of the crop; the rest of the crop lies outside the image."""

    size: int
    top: int
    left: int
    crop_top: int
    crop_left: int
    height: int
    width: int

    def before_mirroring(self, width: int) -> Crop:
        """What to cut from an image of `width`, so that the crop, mirrored, is this one of the mirrored image."""
        return self._replace(left=width - self.left - self.width, crop_left=self.size - self.crop_left - self.width)


class View(NamedTuple):
    """What is shown of an image: the `size` it is brought to, the crop's `place` in it, and whether it is mirrored.

    `factor` is what sizes were multiplied with, for the style that resamples with it rather than with the ratio of
    the sizes, and `recolour` turns an image (H, W, 3) or, for "grey_blur", a normalised crop (3, h, w) into one of
    other colours.
    """

    size: Size
    place: Crop
    mirrored: bool
    factor: float = 1.0
    recolour: Callable[[Array], Array] | None = None

    def geometry(self) -> npt.NDArray[np.float32]:
        """The view's place in the image, see `ops.fields.ImageField`."""
        (height, width), place = self.size, self.place
        top, left = place.top - place.crop_top, place.left - place.crop_left
        box = (top / height, left / width, (top + place.size) / height, (left + place.size) / width)
        return np.array([*box, self.mirrored], np.float32)


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the lower end of the range comes first")
    return ends


def _as_list(value: Any) -> Any:
    """One number stands for a list of one."""
    return (value,) if isinstance(value, int | float) else value


Ascending = AfterValidator(_ascending)
Factor = Annotated[float, Field(ge=0.01, le=16)]
SMALLEST_CROP, LARGEST_CROP = 8, 8192
"""Sides of a training image in pixels, between which networks work at all."""


class Augmentation(Settings):
    """Random size, place and mirroring for training; see the module's docstring for the styles.

    The longer side is first brought to an integer drawn uniformly from `resize_long` = (lowest, highest), both
    included; then the sizes are multiplied by a factor drawn uniformly from the range `scale_range` or from the
    list `scale_choices` (`null` for either: not done). The image is resampled once. A square of side `crop` is cut
    at a random place and, if `mirror`, turned left to right with probability one half.

    `colour` "jitter" changes brightness, contrast, saturation and hue in random order, "hsv_shift" adds
    integers up to ±10 to hue, saturation and value, "grey_blur" makes three of ten views grey and blurs half of all.
    """

    style: Style = Field(
        default="pillow", description="how images are resampled and sizes rounded, see data/transforms.py"
    )
    resize_long: Annotated[tuple[PositiveInt, PositiveInt], Ascending] | None = Field(
        default=None, description="pixels: lowest and highest length that the longer side is brought to; null: its own"
    )
    scale_range: Annotated[tuple[Factor, Factor], Ascending] | None = Field(
        default=None, description="lowest and highest factor that sizes are multiplied with; null: none"
    )
    scale_choices: Annotated[tuple[Factor, ...], BeforeValidator(_as_list), Field(min_length=1)] | None = Field(
        default=None, description="factors, one of which sizes are multiplied with; null: none"
    )
    crop: int = Field(default=321, ge=SMALLEST_CROP, le=LARGEST_CROP, description="side of the square, pixels")
    mirror: bool = Field(default=True, description="turn half of the views from left to right")
    padding: Literal["mean", "black", "grey"] = Field(
        default="mean", description="the colour outside of the image; grey: 127 in all channels"
    )

    colour: Literal["jitter", "hsv_shift", "grey_blur"] | None = Field(
        default=None, description="random changes of the colours; null: none"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Augmentation:
        if self.style == "opencv_cubic" and (self.resize_long or self.scale_choices):
            raise ValueError(
                "the style opencv_cubic knows scale_range alone; set resize_long and scale_choices to null"
            )
        if self.style in FLOATING and self.colour in ("jitter", "hsv_shift"):
            raise ValueError(
                f"this colour needs images of 8 bits, which the style {self.style} does not keep; set it to null"
            )
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> Augmentation:
        if self.scale_range and self.scale_choices:
            raise ValueError("set scale_range or scale_choices, not both")
        return self

    def __call__(
        self,
        arrays: Mapping[str, Array],
        fields: Mapping[str, ImageField],
        rng: np.random.Generator,
        mirrored_labels: Sequence[int] = (),
    ) -> dict[str, Array]:
        """One random view of an image and of all that follows it: `image` (3, crop, crop), normalised, and the fields.

        `arrays` hold `image`, uint8 (H, W, 3), and the fields by name, as `data.loading.read_fields` gives them.
        Numbers are drawn from `rng` in this order: longer side, scale, horizontal place, vertical place, mirroring,
        colour; a setting that is switched off draws nothing. `mirrored_labels` say what each label of the classes
        becomes where a view is mirrored (`labels.Classes.mirrored`); without them, all stay as they are.
        """
        image = arrays["image"]
        view = self.draw((image.shape[0], image.shape[1]), rng)
        return {
            "image": self.image(image, view),
            **{
                name: _with_sides(name, field, self.follow(field, arrays.get(name), view), mirrored_labels)
                if view.mirrored
                else self.follow(field, arrays.get(name), view)
                for name, field in fields.items()
            },
        }

    def follow(self, field: ImageField, array: Array | None, view: View) -> Array:
        """One view of a field, which is None for the view's own geometry."""
        if field.follows == "geometry":
            return view.geometry()
        assert array is not None
        if field.follows == "whole":
            return array
        if field.follows == "maps":
            return self.maps(array, view)
        outside = int(array.max()) + 1 if field.follows == "ids" else field.outside
        return self.labels(array, view, outside)

    def draw(self, size: Size, rng: np.random.Generator) -> View:
        """A random view of an image of `size`."""
        size, factor = self._draw_size(size, rng)
        place = random_crop(size, self.crop, self.style, rng)
        mirrored = self.mirror and rng.random() < 0.5
        if self.style in ("opencv_linear", "opencv_float") and mirrored:
            place = place.before_mirroring(size[1])
        recolour = None if self.colour is None else COLOURS[self.colour](rng)
        return View(size, place, mirrored, factor, recolour)

    def image(self, image: Image, view: View) -> FloatImage:
        """One view of an image (H, W, 3), normalised, (3, crop, crop)."""
        fill = PADDING[self.padding]
        if view.recolour and self.colour == "hsv_shift":  # the papers' order of things
            image = view.recolour(image)
        if self.style == "opencv_cubic":
            image = scale_cubic(image, view.size, view.factor)
        else:
            image = resize_image(image, view.size, self.style)
        if view.recolour and self.colour == "jitter":
            image = view.recolour(image)
        cut = normalised_crop(image, view.place, fill)
        if view.recolour and self.colour == "grey_blur":
            cut = view.recolour(cut)
        return _turned(cut, view)

    def labels(self, labels: Array, view: View, outside: int = VOID) -> Array:
        """One view of a label map (H, W), with `outside` where the view leaves it, (crop, crop)."""
        if self.style == "opencv_cubic":
            labels = scale_nearest(labels, view.size, view.factor)
        if self.style == "opencv_float" and view.mirrored:  # this interpolation is not the same from right to left
            return crop(scale_nearest(mirror(labels), view.size), view.place.before_mirroring(view.size[1]), outside)
        if self.style in ("opencv_linear", "opencv_float"):
            labels = scale_nearest(labels, view.size)
        return _turned(crop(resize_labels(labels, view.size), view.place, outside), view)

    def maps(self, maps: FloatImage, view: View) -> FloatImage:
        """One view of maps (K, H, W) of any float type, 0 outside, (K, crop, crop) float32."""
        maps = maps.astype(np.float32, copy=False)
        return _turned(crop(resize_maps(maps, view.size).transpose(1, 2, 0), view.place, 0).transpose(2, 0, 1), view)

    def _draw_size(self, size: Size, rng: np.random.Generator) -> tuple[Size, float]:
        """The size of the view, and the factor of the last scaling."""
        factor = 1.0
        if self.resize_long:
            size = longer_side_size(size, int(rng.integers(*self.resize_long, endpoint=True)), self.style)
        if self.scale_range:
            factor = rng.uniform(*self.scale_range)
        if self.scale_choices:
            factor = self.scale_choices[rng.integers(len(self.scale_choices))]
        return scaled_size(size, factor, self.style), factor


def _draw_jitter(rng: np.random.Generator) -> Callable[[Image], Image]:
    """Colour jitter: factors in [0.7, 1.3], the hue turned by up to a tenth of a circle."""
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, 3).tolist()
    return partial(
        jitter_colours,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=rng.uniform(-0.1, 0.1),
        order=rng.permutation(4).tolist(),
    )


def _draw_hsv_shift(rng: np.random.Generator) -> Callable[[Image], Image]:
    hue, saturation, value = rng.integers(-10, 10, 3, endpoint=True).tolist()
    return partial(shift_hsv, hue=hue, saturation=saturation, value=value)


def _draw_grey_blur(rng: np.random.Generator) -> Callable[[FloatImage], FloatImage]:
    grey = rng.random() < 0.3
    sigma = rng.uniform(0.1, 5) if rng.random() < 0.5 else None
    return partial(grey_and_blur, grey=grey, sigma=sigma)


COLOURS: Mapping[str, Callable[[np.random.Generator], Callable[[Array], Array]]] = {
    "jitter": _draw_jitter,
    "hsv_shift": _draw_hsv_shift,
    "grey_blur": _draw_grey_blur,
}


def grey_and_blur(view: FloatImage, *, grey: bool, sigma: float | None) -> FloatImage:
    """A normalised view (3, h, w), h and w at least 3, without its colours if `grey`, and blurred with the 5×5 weights
    exp(-(i² + j²) / σ²), over their sum, mirrored at the border, if there is a `sigma`."""
    if grey:
        mean, std = IMAGENET_MEAN[:, None, None], IMAGENET_STD[:, None, None]
        luminance = np.tensordot(GREY_WEIGHTS, view * std + mean, axes=1)
        view = (luminance - mean) / std
    if sigma is not None:
        weights = np.exp(-(np.arange(-2, 3) ** 2) / sigma**2).astype(np.float32)
        weights /= weights.sum()
        for axis in (1, 2):
            padded = np.pad(view, [(2, 2) if axis == other else (0, 0) for other in range(3)], mode="reflect")
            length = view.shape[axis]
            view = sum(w * padded.take(range(i, i + length), axis) for i, w in enumerate(weights))
    return view.astype(np.float32)


def jitter_colours(
    image: Image, *, brightness: float, contrast: float, saturation: float, hue: float, order: Sequence[int] = range(4)
) -> Image:
    """An RGB image (H, W, 3) with four changes, in the `order` of their numbers: Pillow's enhancement of brightness
    (0), contrast (1) and saturation (2) by factors, and the hue (3) turned by a part of a circle."""
    from PIL import Image as pillow
    from PIL import ImageEnhance

    def turn_hue(picture: pillow.Image) -> pillow.Image:
        channels = np.array(picture.convert("HSV"))
        channels[..., 0] += np.uint8(int(hue * 255) % 256)  # wraps round
        return pillow.fromarray(channels, "HSV").convert("RGB")

    changes: list[Callable[[pillow.Image], pillow.Image]] = [
        lambda picture: ImageEnhance.Brightness(picture).enhance(brightness),
        lambda picture: ImageEnhance.Contrast(picture).enhance(contrast),
        lambda picture: ImageEnhance.Color(picture).enhance(saturation),
        turn_hue,
    ]
    picture = pillow.fromarray(image)
    for number in order:
        picture = changes[number](picture)
    return np.asarray(picture)


def longer_side_size(size: Size, target: int, style: Style = "pillow") -> Size:
    """`size` with its longer side brought to `target`, the other in proportion and at least 1."""
    if style in FLOATING:
        height, width = (max(1, target * side // max(size)) for side in size)
        return height, width
    return scaled_size(size, target / max(size), style)


def scaled_size(size: Size, factor: float, style: Style = "pillow") -> Size:
    """`size` times `factor`, at least 1×1; rounded half to even, for `torch` and `opencv_float` down, for
    `opencv_linear` half up."""
    height, width = (max(1, _rounded(side * factor, style)) for side in size)
    return height, width


def _rounded(side: float, style: Style) -> int:
    if style == "opencv_linear":
        return int(side + 0.5)
    return int(side) if style in FLOATING else round(side)


def resize_image(image: Image, size: Size, style: Style = "pillow") -> Array:
    """An image (H, W, 3) of uint8 resampled to `size`: uint8 or, for `torch` and `opencv_float`, float32 in
    [0, 255].

    The style "opencv_cubic" needs more than the size, see `scale_cubic`. An image that has that size already is
    returned as it is.
    """
    if image.shape[:2] == size:
        return image
    if style == "opencv_linear":
        return scale_linear(image, size)
    if style not in FLOATING:
        from PIL import Image as pillow

        return np.asarray(pillow.fromarray(image).resize(size[::-1], pillow.Resampling.BICUBIC))
    import torch
    from torch.nn import functional as F

    channels_first = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(channels_first, size=size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def resize_maps(maps: FloatImage, size: Size) -> FloatImage:
    """Maps (K, H, W) resampled bilinearly (align_corners=False) to `size`."""
    if maps.shape[1:] == size:
        return maps
    import torch
    from torch.nn import functional as F

    return F.interpolate(torch.as_tensor(maps)[None], size, mode="bilinear", align_corners=False)[0].numpy()


def random_crop(size: Size, side: int, style: Style, rng: np.random.Generator) -> Crop:
    """Where to cut a square from an image of `size`; horizontal place first, then vertical.

    Along an axis where the image is larger than the crop, all places are equally likely. Where it is smaller, it
    lies anywhere in the crop or, for the styles `CORNERED`, at its beginning.
    """
    (left, crop_left), (top, crop_top) = (_random_place(length, side, style, rng) for length in reversed(size))
    return Crop(side, top, left, crop_top, crop_left, min(size[0], side), min(size[1], side))


def _random_place(length: int, side: int, style: Style, rng: np.random.Generator) -> tuple[int, int]:
    """Where along one axis the common part begins: in the image, in the crop."""
    if length > side:
        return int(rng.integers(length - side, endpoint=True)), 0
    return 0, int(rng.integers(side - length, endpoint=True)) if style not in CORNERED else 0


def top_left_crop(size: Size, side: int) -> Crop:
    """The upper left square of an image of `size`, or the image in the upper left of the square."""
    return Crop(side, 0, 0, 0, 0, min(size[0], side), min(size[1], side))


def crop(array: Array, place: Crop, fill: npt.ArrayLike) -> Array:
    """Cut `place` from a label map (H, W) or an image (H, W, channels), with `fill` outside."""
    cut = np.empty((place.size, place.size, *array.shape[2:]), array.dtype)
    cut[...] = fill
    _inside(cut, place)[...] = _source(array, place)
    return cut


def normalised_crop(image: Array, place: Crop, fill: npt.ArrayLike = 0) -> FloatImage:
    """Cut `place` from an image (H, W, 3) in [0, 255] and normalise it to (3, size, size) with `fill` outside.

    The same as cropping the normalised image, in a fraction of the time.
    """
    cut = np.empty((3, place.size, place.size), np.float32)
    cut[...] = fill
    inside = _inside(cut.transpose(1, 2, 0), place).transpose(2, 0, 1)
    np.multiply(_source(image, place).transpose(2, 0, 1), _SCALE, out=inside)
    inside += _SHIFT
    return cut


def _inside(cut: Array, place: Crop) -> Array:
    """The part of a crop that the image covers."""
    return cut[place.crop_top : place.crop_top + place.height, place.crop_left : place.crop_left + place.width]


def _source(array: Array, place: Crop) -> Array:
    """The part of an image that a crop shows."""
    return array[place.top : place.top + place.height, place.left : place.left + place.width]


def _turned(array: Array, view: View) -> Array:
    return np.ascontiguousarray(mirror(array) if view.mirrored else array)


def mirror(array: Array) -> Array:
    """Left and right exchanged: the last axis reversed, of (3, H, W) or (H, W)."""
    return array[..., ::-1]


def _with_sides(name: str, field: ImageField, array: Array, mirrored_labels: Sequence[int]) -> Array:
    """A field of a mirrored view with left and right classes exchanged: label maps and tags."""
    if not len(mirrored_labels):
        return array
    if field.follows == "labels":
        table = np.arange(max(256, len(mirrored_labels)), dtype=array.dtype)
        table[: len(mirrored_labels)] = mirrored_labels
        return table[array]
    return array[np.asarray(mirrored_labels[1:]) - 1] if name == "tags" else array
