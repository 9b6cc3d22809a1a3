"""Files of MXNet and Caffe: what is read, and that nothing in a strange file does harm."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foreign import Arrays, blob, caffe_bytes, message, mxnet_bytes, varint
from weakseg.errors import WeaksegError
from weakseg.models.caffe import read_caffe
from weakseg.models.mxnet import DTYPES, read_mxnet
from weakseg.models.originals import ORIGINALS, read_caffe_deeplab
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.models.vgg import VGG16
from weakseg.models.weights import imagenet_weights, load_weights


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mxnet_arrays_of_every_type(tmp_path: Path, dtype: str, legacy: bool) -> None:
    arrays = {"arg:a": np.arange(6).reshape(1, 2, 3).astype(dtype), "aux:ä": np.array([7]).astype(dtype)}
    (tmp_path / "w.params").write_bytes(mxnet_bytes(arrays, legacy))
    found = read_mxnet(tmp_path / "w.params")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(found[name].numpy(), array)


@pytest.mark.parametrize("old", [False, True])
def test_caffe_layers_of_both_generations(tmp_path: Path, old: bool) -> None:
    arrays = {"conv/0": np.arange(300.0).reshape(2, 150, 1, 1), "conv/1": np.ones(2), "fc/0": np.zeros((1, 3))}
    (tmp_path / "w.caffemodel").write_bytes(caffe_bytes(arrays, old))
    found = read_caffe(tmp_path / "w.caffemodel")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        shape = (1,) * (4 - array.ndim) + array.shape if old else array.shape
        np.testing.assert_array_equal(found[name].numpy(), array.reshape(shape))


def test_caffe_numbers_with_a_field_each(tmp_path: Path) -> None:
    values = b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in (1.5, -2.0))
    layer = message(1, b"conv") + message(7, values)
    (tmp_path / "w.caffemodel").write_bytes(message(100, layer))
    assert read_caffe(tmp_path / "w.caffemodel")["conv/0"].tolist() == [1.5, -2.0]


GOOD_MXNET = mxnet_bytes({"arg:a": np.arange(6, dtype="<f4").reshape(2, 3), "arg:b": np.ones(2, "<f4")})
GOOD_CAFFE = caffe_bytes({"a/0": np.arange(6.0).reshape(2, 3), "b/0": np.ones(2)})


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "it ends within its header"),
        (b"\x13" + GOOD_MXNET[1:], "it does not begin like one"),
        (GOOD_MXNET[:60], "it ends within array 1 of 2"),
        (GOOD_MXNET + b"!", "1 bytes follow its end"),
        (struct.pack("<QQQ", 0x112, 0, 2**63), "it ends within array 1 of"),
        (struct.pack("<QQQI", 0x112, 0, 1, 9), "array 1 of 1 would have 9 dimensions"),
        (struct.pack("<QQQIi", 0x112, 0, 1, 0xF993FAC9, 1), r"array 1 of 1 is sparse \(storage type 1\)"),
        (struct.pack("<QQQIIq", 0x112, 0, 1, 0xF993FAC8, 1, -4), r"the impossible shape \(-4,\)"),
        (struct.pack("<QQQIIiii", 0x112, 0, 1, 1, 4, 1, 0, 7), "the unknown type 7"),
        (struct.pack("<QQQII3i", 0x112, 0, 1, 1, 2**32 - 1, 1, 0, 6), "it ends within array 1 of 1"),
        (mxnet_bytes({"a": np.ones(1, "<f4")})[:-17] + struct.pack("<Q", 2), "not as many names"),
        (GOOD_MXNET[:-5] + b"arg:a", 'two of its arrays are called "arg:a"'),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else value,
)
def test_strange_mxnet_files(tmp_path: Path, data: bytes, fault: str) -> None:
    (tmp_path / "w.params").write_bytes(data)
    with pytest.raises(WeaksegError, match=rf"w\.params is not a readable .params file of MXNet: .*{fault}"):
        read_mxnet(tmp_path / "w.params")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "it holds no weights"),
        (message(1, b"only a name"), "it holds no weights"),
        (GOOD_CAFFE[:-20], "longer than what it is in"),
        (b"\xff" * 20, "a number in it does not end"),
        (varint(3 << 3 | 3), "a field of the unknown kind 3"),
        (varint(100 << 3 | 2) + varint(2**62), "longer than what it is in"),
        (message(100, message(1, b"a") + message(7, b"")), "a/0 has no values"),
        (
            message(100, message(1, b"a") + message(7, blob(np.ones(3))[:5] + message(5, b"\0" * 4))),
            r"a/0 has 1 values, which is not the shape \(3,\)",
        ),
        (GOOD_CAFFE + caffe_bytes({"a/0": np.ones(1)}), 'two of its layers are called "a"'),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else value,
)
def test_strange_caffe_files(tmp_path: Path, data: bytes, fault: str) -> None:
    (tmp_path / "w.caffemodel").write_bytes(data)
    with pytest.raises(WeaksegError, match=rf"w\.caffemodel is not a readable .caffemodel file: .*{fault}"):
        read_caffe(tmp_path / "w.caffemodel")


@pytest.mark.parametrize(("good", "read"), [(GOOD_MXNET, read_mxnet), (GOOD_CAFFE, read_caffe)])
def test_damage_is_never_a_traceback(tmp_path_factory: pytest.TempPathFactory, good: bytes, read: Any) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file"

    @given(st.integers(0, len(good) - 1), st.binary(min_size=1, max_size=9), st.booleans())
    def check(position: int, noise: bytes, cut: bool) -> None:
        path.write_bytes(good[:position] + noise + (b"" if cut else good[position + len(noise) :]))
        try:
            state = read(path)
        except WeaksegError as error:
            assert str(path) in str(error)
        else:
            assert sum(tensor.numel() for tensor in state.values()) <= len(good)

    check()


def test_vgg16_from_caffe(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = VGG16()
    arrays: Arrays = {}
    for name, tensor in network.state_dict().items():
        layer, part = name.rsplit(".", 1)
        arrays[f"{layer}/{int(part == 'bias')}"] = tensor.numpy()
    arrays |= {"fc8/0": np.zeros((20, 1024, 1, 1)), "fc8/1": np.zeros(20)}
    path = tmp_path / "vgg16_20M.caffemodel"
    path.write_bytes(caffe_bytes(arrays, old=True))
    loaded = build_backbone(BackboneSettings(name="vgg16_affinity", output_stride=8, weights=str(path)))
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())

    arrays["conv9_1/0"] = np.zeros((1, 1, 1, 1))
    path.write_bytes(caffe_bytes(arrays))
    with pytest.raises(WeaksegError, match=r"is not quite Caffe's VGG-16 .* never called conv9_1/0"):
        load_weights(network, path)


def test_deeplab_layers_from_caffe() -> None:
    state = {
        "res3b2_branch2a/0": torch.ones(1, 1, 1, 1),
        "bn3b2_branch2a/0": torch.tensor([[[[2.0, 4.0]]]]),
        "bn3b2_branch2a/1": torch.tensor([6.0, 8.0]),
        "bn3b2_branch2a/2": torch.tensor([2.0]),
        "scale3b2_branch2a/0": torch.tensor([3.0, 5.0]),
        "scale3b2_branch2a/1": torch.tensor([7.0, 9.0]),
        "fc1_voc12_c3/1": torch.zeros(21),
        "res3b2_branch2a_res075/0": torch.ones(1, 1, 1, 1),
    }
    renamed = read_caffe_deeplab(state)
    norm = "layer3.block3.reduce.bn"
    assert renamed.ignored == ("res3b2_branch2a_res075/0",)
    assert {name: tensor.tolist() for name, tensor in renamed.state.items() if name.startswith(norm)} == {
        f"{norm}.running_mean": [1.0, 2.0],
        f"{norm}.running_var": [3.0, 4.0],
        f"{norm}.weight": [3.0, 5.0],
        f"{norm}.bias": [7.0, 9.0],
    }
    assert set(renamed.state) - {f"{norm}.{part}" for part in ("running_mean", "running_var", "weight", "bias")} == {
        "layer3.block3.reduce.conv.weight",
        "aspp.c3.bias",
    }
    with pytest.raises(WeaksegError, match="never called pool1/0"):
        read_caffe_deeplab({"pool1/0": torch.ones(1)})


def test_resnet38_from_mxnet_names() -> None:
    (original,) = [original for original in ORIGINALS if original.name == "resnet38-mxnet"]
    state = {name: torch.ones(1) for name in ("arg:conv1a_weight", "arg:res2a_branch2a_weight")}
    assert original.matches(state)
    assert list(original.read(state | {"arg:linear1000_bias": torch.ones(1)}).state) == [
        "conv1a.weight",
        "b2.conv_branch2a.weight",
    ]
    for strange in ("arg:bn7_moving_mean", "arg:conv1b_weight", "aux:bn2a_branch2a_gamma"):
        with pytest.raises(WeaksegError, match=f"never called {strange}"):
            original.read(state | {strange: torch.ones(1)})


@pytest.mark.parametrize(("name", "file"), [("resnet38", "ilsvrc-cls_rna-a1"), ("vgg16_largefov", "vgg16_20M")])
def test_says_which_file_to_get(tmp_path: Path, name: str, file: str) -> None:
    with pytest.raises(WeaksegError, match=f"ImageNet weights .*{name}.*{file}.*weights: null"):
        imagenet_weights(name, folder=tmp_path)
