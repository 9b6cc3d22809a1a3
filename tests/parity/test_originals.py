"""Published weights under our names (resnet38.md section 4, affinitynet.md section 2, deeplab.md section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from weakseg.models.mxnet import read_mxnet
from weakseg.models.originals import deeplab_layer, resnet38_name


@pytest.mark.parametrize("kind", ["legacy", "v1", "v2"])
def test_mxnet_files(parity: Any, kind: str) -> None:
    vectors = parity("resnet38/mxnet")
    state = read_mxnet(parity.root / "resnet38" / f"tiny_{kind}.params")
    assert list(state) == vectors["tiny_names"].tolist()
    for k, tensor in enumerate(state.values()):
        assert tensor.numpy().dtype == vectors[f"tiny_{k}"].dtype
        np.testing.assert_array_equal(tensor.numpy(), vectors[f"tiny_{k}"])


def test_names_of_resnet38_in_mxnet(parity: Any) -> None:
    vectors = parity("resnet38/mxnet")
    names = {source: resnet38_name(source) or "" for source in vectors["source"].tolist()}
    assert names == dict(zip(vectors["source"].tolist(), vectors["target"].tolist(), strict=True))
    known = set(parity("resnet38/state_dict")["backbone_keys"].tolist())
    assert known - set(names.values()) == set(vectors["not_in_file"].tolist())


@pytest.mark.parametrize(("version", "prefix"), [("v1", ""), ("v2", "base.")])
def test_names_of_deeplab_in_caffe(parity: Any, version: str, prefix: str) -> None:
    vectors = parity("deeplab/keys")
    layers = zip(vectors[f"caffe_{version}_names"].tolist(), vectors[f"caffe_{version}_keys"].tolist(), strict=True)
    with_weights = {layer: key for layer, key in layers if layer != "pool1"}
    assert {layer: f"{prefix}{deeplab_layer(layer)}" for layer in with_weights} == with_weights
