from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weakseg.models.mobilenet import MobileNetV2
from weakseg.models.weights import load_weights, read_state
from weakseg.ops.activation import normalise_image

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_imagenet.safetensors"
PHOTOS = SHARED / "data" / "voc8"
DOGS = range(151, 269)  # the breeds among ImageNet's 1,000 classes


def test_parameters() -> None:
    # torchvision's documented number of parameters, less those of its classifier of 1,000 classes
    assert sum(p.numel() for p in MobileNetV2().parameters()) == 3_504_872 - 1_281_000


def test_names_of_the_state() -> None:
    state = MobileNetV2().state_dict()
    assert tuple(state["features.0.0.weight"].shape) == (32, 3, 3, 3)
    assert tuple(state["features.1.conv.0.0.weight"].shape) == (32, 1, 3, 3)
    assert tuple(state["features.1.conv.1.weight"].shape) == (16, 32, 1, 1)
    assert tuple(state["features.17.conv.1.0.weight"].shape) == (960, 1, 3, 3)
    assert tuple(state["features.17.conv.3.running_var"].shape) == (320,)
    assert tuple(state["features.18.0.weight"].shape) == (1280, 320, 1, 1)
    assert len(state) == 52 * 6  # convolutions, each with the five tensors of its normalisation


def test_recognises_dogs_with_weights_of_imagenet() -> None:
    for needed in (WEIGHTS, PHOTOS):
        if not needed.exists():
            pytest.skip(f"not found: {needed}")
    network = MobileNetV2(output_stride=32).eval()
    load_weights(network, WEIGHTS)
    classifier = read_state(WEIGHTS)
    tags = json.loads((PHOTOS / "tags.json").read_text(encoding="utf-8"))
    names = [name for name, classes in sorted(tags.items()) if classes == ["dog"]][:12]
    images = []
    for name in names:
        with Image.open(PHOTOS / "JPEGImages" / f"{name}.jpg") as file:
            images.append(normalise_image(np.asarray(file.convert("RGB").resize((224, 224)))))
    with torch.inference_mode():
        pooled = network(torch.from_numpy(np.stack(images)))[-1].mean((2, 3))
        predicted = (pooled @ classifier["classifier.1.weight"].T + classifier["classifier.1.bias"]).argmax(1).tolist()
    assert sum(label in DOGS for label in predicted) >= 9
