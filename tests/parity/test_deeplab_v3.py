"""DeepLab v3 and v3+ against their reference (deeplab.md section 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reference import DEEPLAB, agrees
from weakseg.methods.deeplab_v3 import DeepLabV3
from weakseg.models.deeplab_resnet import DeepLabResNet
from weakseg.models.registry import BACKBONES, BackboneSettings
from weakseg.ops.activation import normalise_image

RATES = {16: (6, 12, 18), 8: (12, 24, 36)}


def build(output_stride: int, decoder: bool, num_classes: int, name: str = "deeplab_resnet101_multi_grid") -> DeepLabV3:
    backbone = BackboneSettings(name=name, output_stride=output_stride, weights=None)  # type: ignore[arg-type]
    return DeepLabV3(DeepLabV3.Settings(backbone=backbone, rates=RATES[output_stride], decoder=decoder), num_classes)


@torch.no_grad()
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize(("version", "decoder"), [("v3", False), ("v3plus", True)])
def test_logits(parity: Any, monkeypatch: pytest.MonkeyPatch, version: str, decoder: bool, output_stride: int) -> None:
    vectors = parity("deeplab/v3")
    blocks = tuple(vectors["n_blocks"].tolist())
    monkeypatch.setitem(
        BACKBONES, "reference", lambda stride, dilated: DeepLabResNet(stride, dilated, blocks, (1, 2, 4))
    )
    num_classes = vectors["v3_os16"].shape[1] - 1
    network = build(output_stride, decoder, num_classes, "reference").eval()
    names = {name: name.removeprefix("backbone.") for name in network.state_dict()}
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = parity.fill.fill_state_dict(shapes, int(vectors["fill_seed"]), float(vectors["fill_gain"]))
    network.load_state_dict({name: torch.from_numpy(np.asarray(state[reference])) for name, reference in names.items()})
    logits = network.logits({"image": torch.from_numpy(normalise_image(vectors["image"]))[None]})
    expected = vectors[f"{version}_os{output_stride}"]
    if not decoder:
        agrees(logits, expected, **DEEPLAB)
        return
    agrees(logits[:, :, ::7, ::7], expected, **DEEPLAB)
    values = logits.double()
    stats = torch.stack([values.mean(), values.std(correction=0), values.min(), values.max()])
    agrees(stats, vectors[f"v3plus_os{output_stride}_stats"], **DEEPLAB)


@pytest.mark.parametrize(("version", "decoder"), [("v3", False), ("v3plus", True)])
def test_names_of_the_state(parity: Any, version: str, decoder: bool) -> None:
    vectors = parity("deeplab/keys")
    rows = zip(vectors[f"{version}_keys"].tolist(), vectors[f"{version}_shapes"].tolist(), strict=True)
    expected = {name: tuple(side for side in shape if side) for name, shape in rows}
    *_, (outputs,) = expected.values()  # the classifier's bias comes last
    with torch.device("meta"):
        network = build(16, decoder, outputs - 1)
    state = network.state_dict().items()
    assert {name.removeprefix("backbone."): tuple(tensor.shape) for name, tensor in state} == expected
    assert sum(parameter.numel() for parameter in network.parameters()) == vectors[f"{version}_parameters"]
