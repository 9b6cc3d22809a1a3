"""AffinityNet against vectors of its reference implementations. Walk and pairs: test_random_walk.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from weakseg.data.transforms import Augmentation, Crop, View
from weakseg.methods.affinitynet import Pairs, affinity_losses, pairs, view_labels


def unpacked(vectors: dict[str, np.ndarray], kind: str) -> np.ndarray:
    shape = vectors["item_pairs_shape"]
    return np.unpackbits(vectors[f"item_{kind}"], count=int(shape.prod())).reshape(shape)


def test_kinds_of_pairs(parity: Any) -> None:
    vectors = parity("affinitynet/labels")
    found = pairs(torch.as_tensor(vectors["label"])[None], radius=5)
    for kind, chosen in zip(("bg", "fg", "neg"), found, strict=True):
        np.testing.assert_array_equal(chosen[0], vectors[f"label_{kind}"])


def test_a_training_sample(parity: Any) -> None:
    vectors = parity("affinitynet/labels")
    side = int(vectors["item_size"])
    left, destination, mirrored = vectors["item_draws"].tolist()
    height, width = vectors["item_image"].shape[:2]
    assert vectors["item_bounds"].tolist()[:2] == [width - side + 1, side - height + 1]
    view = View((height, width), Crop(side, 0, left, destination, 0, height, side), bool(mirrored))

    augmentation = Augmentation(crop=side, padding="black")
    image = augmentation.image(vectors["item_image"], view)
    assert np.abs(image[:, ::4, ::4] - vectors["item_x"]).max() <= 1e-6
    stats = image.mean(dtype=np.float64), image.std(dtype=np.float64), np.abs(image).max()
    assert np.abs(np.array(stats) - vectors["item_x_stats"]).max() <= 1e-6

    evidence = {name: vectors[f"item_{name}"].astype(np.float32) / np.float32(65535) for name in ("low", "high")}
    labels = view_labels(evidence, augmentation, view, stride=8)
    np.testing.assert_array_equal(labels, vectors["item_label"])
    for kind, chosen in zip(("bg", "fg", "neg"), pairs(torch.as_tensor(labels)[None], radius=5), strict=True):
        np.testing.assert_array_equal(chosen[0], unpacked(vectors, kind))


@pytest.mark.parametrize("case", ["mixed", "no_foreground"])
def test_losses(parity: Any, case: str) -> None:
    vectors = parity("affinitynet/losses")
    affinities = torch.as_tensor(vectors[f"{case}_aff"]).requires_grad_()
    kind = torch.as_tensor(vectors[f"{case}_kind"])
    terms = affinity_losses(affinities, Pairs(kind == 0, kind == 1, kind == 2))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    weights = {"background": 4, "foreground": 4, "different": 2}
    found = [*(terms[name].item() * weight for name, weight in weights.items()), total.item()]
    assert np.abs(np.array(found) - vectors[f"{case}_values"]).max() <= 1e-5
    assert affinities.grad is not None
    expected = vectors[f"{case}_grad"]
    assert np.abs(affinities.grad.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
