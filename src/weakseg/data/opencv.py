"""What OpenCV does to 8-bit images when it scales them and shifts their colours, without OpenCV.

Programs of papers augment images this way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[Any]
Size = tuple[int, int]

CUBIC_A = np.float32(-0.75)
# Saturation is 255 · chroma / value, hue 30 · (difference / chroma): fixed-point numbers of 12 bits after the point.
_BITS = 12
_DIVISORS = np.maximum(np.arange(256), 1)
_SATURATION = np.rint((255 << _BITS) / _DIVISORS).astype(np.int64)
_HUE = np.rint((30 << _BITS) / _DIVISORS).astype(np.int64)
HUES = 180
_LINEAR_BITS = 11


def scale_cubic(image: Image, size: Size, factor: float) -> Image:
    """An image (H, W, 3) at `size`, its pixels `1 / factor` apart: cubic interpolation without antialiasing.

    `size` is the rounded product of (H, W) and `factor`, so the last row and column may lie a little off the border,
    and the border is repeated there.
    """
    rows = _resample(image.astype(np.float32), size[0], factor)
    both = _resample(rows.transpose(1, 0, 2), size[1], factor).transpose(1, 0, 2)
    return np.clip(np.rint(both), 0, 255).astype(np.uint8)


def _resample(values: npt.NDArray[np.float32], count: int, factor: float) -> npt.NDArray[np.float32]:
    """`count` rows of `values`, each the weighted sum of four (Keys, "Cubic convolution interpolation for digital image
    processing", 1981, with a = -3/4)."""
    positions = (np.arange(count) + 0.5) * (1 / factor) - 0.5
    first = np.floor(positions).astype(np.intp)
    t = (positions - first).astype(np.float32)
    a = CUBIC_A
    inner, outer = ((a + 2) * x**3 - (a + 3) * x**2 + 1 for x in (t, 1 - t))
    before, after = (a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a for x in (1 + t, 2 - t))
    total = np.zeros((count, *values.shape[1:]), np.float32)
    for tap, weight in enumerate((before, inner, outer, after)):
        rows = np.clip(first + tap - 1, 0, len(values) - 1)
        total += weight[:, None, None] * values[rows]
    return total


def scale_linear(image: Image, size: Size) -> Image:
    """An image (H, W, 3) at `size`: linear interpolation without antialiasing, weights in fixed-point numbers."""
    values = image.astype(np.int64)
    (above, below, top, bottom), (left, right, near, far) = (
        _linear_taps(*sides) for sides in zip(image.shape, size, strict=False)
    )
    across = values[:, left] * near[:, None] + values[:, right] * far[:, None]
    # Four bits go before the product and sixteen after it, so that numbers of 32 bits hold it.
    upper, lower = (
        (across[rows] >> 4) * weight[:, None, None] >> 16 for rows, weight in ((above, top), (below, bottom))
    )
    return (upper + lower + 2 >> 2).astype(np.uint8)


def _linear_taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], ...]:
    """For `target` positions along an axis of `source` pixels, the two pixels around each and their weights."""
    positions = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32).clip(0, source - 1)
    first = np.floor(positions).astype(np.int64)
    part = positions - first.astype(np.float32)
    near, far = (np.rint(weight * (1 << _LINEAR_BITS)).astype(np.int64) for weight in (1 - part, part))
    return first, np.minimum(first + 1, source - 1), near, far


def scale_nearest(labels: Labels, size: Size, factor: float | None = None) -> Labels:
    """A label map (H, W) of any type at `size`, each pixel from the source pixel that contains its upper left corner.
    Pixels are `1 / factor` apart or, without a factor, so far that they fill the map.

    This shifts labels by up to half an output pixel; `resize_labels` does not.
    """
    rows, columns = (
        np.minimum(
            (np.arange(target) * (source / target if factor is None else 1 / factor)).astype(np.intp), source - 1
        )
        for source, target in zip(labels.shape, size, strict=True)
    )
    return labels[rows][:, columns]


def shift_hsv(image: Image, hue: int, saturation: int, value: int) -> Image:
    """An RGB image (H, W, 3) with shifted colours: hue in steps of 2°, modulo 180, saturation and value of 255, cut."""
    h, s, v = _to_hsv(image)
    return _to_rgb((h + hue) % HUES, np.clip(s + saturation, 0, 255), np.clip(v + value, 0, 255))


def _to_hsv(image: Image) -> tuple[npt.NDArray[np.int64], ...]:
    red, green, blue = (image[..., channel].astype(np.int64) for channel in range(3))
    value = image.max(-1).astype(np.int64)
    chroma = value - image.min(-1)
    half = 1 << (_BITS - 1)
    saturation = (chroma * _SATURATION[value] + half) >> _BITS
    difference = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = (difference * _HUE[chroma] + half) >> _BITS
    return hue % HUES, saturation, value


def _to_rgb(hue: npt.NDArray[np.int64], saturation: npt.NDArray[np.int64], value: npt.NDArray[np.int64]) -> Image:
    """The six sectors of the colour wheel, each with one channel at its largest, one at its smallest."""
    sector, s = hue / 30, saturation / 255
    part = sector - np.floor(sector)
    largest, smallest = value, value * (1 - s)
    falling, rising = value * (1 - s * part), value * (1 - s * (1 - part))
    number = np.floor(sector).astype(np.intp)
    red = np.choose(number, [largest, falling, smallest, smallest, rising, largest])
    green = np.choose(number, [rising, largest, largest, falling, smallest, smallest])
    blue = np.choose(number, [smallest, smallest, rising, largest, largest, falling])
    return np.rint(np.stack([red, green, blue], axis=-1)).astype(np.uint8)
