"""Features of a dense CRF's kernels: the place of each pixel, in standard deviations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weakseg.errors import WeaksegError
from weakseg.ops.crf_parameters import Scale

FloatArray = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


def gaussian_features(height: int, width: int, sxy: Scale) -> FloatArray:
    """(x / sx, y / sy) of every pixel in raster order, (N, 2); x first, as the lattice is not isotropic."""
    sx, sy = scale_per_axis(sxy, 2)
    features = np.empty((2, height, width), np.float32)
    features[0] = np.arange(width, dtype=np.float32) / sx
    features[1] = (np.arange(height, dtype=np.float32) / sy)[:, None]
    return features.reshape(2, -1).T


def bilateral_features(image: Image, sxy: Scale, srgb: Scale) -> FloatArray:
    """(x / sx, y / sy, R / sr, G / sg, B / sb) of every pixel of an image (H, W, K) in raster order, (N, 2 + K)."""
    height, width, channels = image.shape
    features = np.empty((2 + channels, height, width), np.float32)
    features[:2] = gaussian_features(height, width, sxy).T.reshape(2, height, width)
    for channel, scale in enumerate(scale_per_axis(srgb, channels)):
        features[2 + channel] = (np.arange(256, dtype=np.float32) / scale)[image[..., channel]]
    return features.reshape(2 + channels, -1).T


def scale_per_axis(scale: Scale, axes: int) -> FloatArray:
    """The scale of each axis, (axes,); raises `WeaksegError` where there are other than one or `axes` numbers."""
    values = np.atleast_1d(np.asarray(scale, np.float32))
    if len(values) not in (1, axes):
        raise WeaksegError(f"The scale {scale} has {len(values)} numbers; {axes} (or one for all) are needed.")
    return np.broadcast_to(values, axes)
