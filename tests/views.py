"""Random views of an image, with and without its labels."""

from __future__ import annotations

import numpy as np

from weakseg.data.transforms import Augmentation
from weakseg.ops.fields import LABELS


def augmented(
    augmentation: Augmentation, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One view of an image (H, W, 3) and of its labels (H, W)."""
    view = augmentation({"image": image, "labels": labels}, {"labels": LABELS}, rng)
    return view["image"], view["labels"]


def augmented_image(augmentation: Augmentation, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One view of an image (H, W, 3) that has no fields."""
    view = augmentation({"image": image}, {}, rng)
    assert list(view) == ["image"]
    return view["image"]
