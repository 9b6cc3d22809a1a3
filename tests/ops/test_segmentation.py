from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from weakseg.ops.activation import Views, normalise_image, resize_image
from weakseg.ops.fields import Batch
from weakseg.ops.segmentation import multi_scale_probabilities


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def logits(batch: Batch) -> Tensor:
    """A tiny network of stride 4 that does not look the same in the mirror."""
    kernel = torch.linspace(-1, 1, 4 * 3 * 3 * 3).sin().reshape(4, 3, 3, 3)
    return F.conv2d(batch["image"], kernel, stride=4, padding=1)


def views_one_by_one(image: np.ndarray, scales: list[float], mirror: bool) -> np.ndarray:
    full_size = []
    for scale in scales:
        view = torch.from_numpy(normalise_image(resize_image(image, scale)))[None]
        for flipped in [False, True] if mirror else [False]:
            scores = logits({"image": view.flip(3) if flipped else view})
            scores = F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=False)
            full_size.append(scores.flip(3) if flipped else scores)
    return torch.cat(full_size).mean(0).softmax(0).numpy()


def probabilities_of(images: list[np.ndarray], scales: list[float], mirror: bool) -> np.ndarray:
    return torch.stack(list(multi_scale_probabilities(logits, Views.of(images, scales), mirror=mirror))).numpy()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (33, 47), (64, 40)])
def test_is_the_softmax_of_the_mean_over_all_views(size: tuple[int, int], mirror: bool) -> None:
    images, scales = [random_image(*size), 255 - random_image(*size)], [0.5, 1.0, 1.5]
    probabilities = probabilities_of(images, scales, mirror)
    assert probabilities.shape == (2, 4, *size)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    for image, of_image in zip(images, probabilities, strict=True):
        np.testing.assert_allclose(of_image, views_one_by_one(image, scales, mirror), atol=1e-5)


def test_with_mirror_the_mirrored_image_gives_the_mirrored_result() -> None:
    image = random_image(30, 45)
    result, mirrored = (probabilities_of([i], [1.0], True) for i in (image, np.ascontiguousarray(image[:, ::-1])))
    np.testing.assert_allclose(mirrored[..., ::-1], result, atol=1e-5)
