"""Backbones by name, and where their weights come from."""

from __future__ import annotations

import hashlib
import logging
import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from weakseg import download
from weakseg.errors import WeaksegError
from weakseg.models.backbone import Backbone
from weakseg.models.registry import BACKBONES, BackboneSettings, build_backbone
from weakseg.models.resnet import resnet18
from weakseg.models.weights import IMAGENET_FILES, imagenet_weights, load_weights, read_state
from weakseg.settings import validate


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A state of ResNet-18 that no new network has."""
    torch.manual_seed(7)
    return {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in resnet18().state_dict().items()
    }


def holds(backbone: Backbone, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_every_backbone(name: str) -> None:
    backbone = build_backbone(BackboneSettings(name=name, output_stride=8, weights=None, frozen_stages=2))
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, 33, 49))
    assert backbone.strides[-1] == 8
    assert [f.shape[1] for f in features] == list(backbone.channels)
    assert features[-1].shape[-2:] == (5, 7)
    learning = sum(p.requires_grad for p in backbone.parameters())
    assert 0 < learning < len(list(backbone.parameters()))


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(WeaksegError, match=r'cam\.backbone\.name: there is no such backbone\. Did you mean "resnet50"'):
        validate(BackboneSettings, {"name": "resnet5O"}, "cam.backbone")


@pytest.mark.parametrize("values", [{"output_stride": 4}, {"frozen_stages": 6}, {"weight": None}])
def test_impossible_settings(values: dict[str, object]) -> None:
    (key,) = values
    with pytest.raises(WeaksegError, match=f"backbone.{key}"):
        validate(BackboneSettings, values, "backbone")


def test_small_is_always_dilated() -> None:
    with pytest.raises(WeaksegError, match="no version without dilation"):
        build_backbone(BackboneSettings(name="small", weights=None, dilated=False))


@pytest.mark.parametrize("name", ["resnet38", "vgg16", "vgg16_affinity", "vgg16_largefov"])
@pytest.mark.parametrize("values", [{"output_stride": 16}, {"output_stride": 8, "dilated": False}])
def test_backbones_of_stride_8_alone(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(WeaksegError, match=rf'"{name}" exists at stride 8 .* Set its output_stride to 8'):
        build_backbone(BackboneSettings(name=name, weights=None, **values))


def test_load_weights_false_needs_no_file() -> None:
    build_backbone(BackboneSettings(name="resnet18", weights="/nowhere.pth"), load_weights=False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_path(state: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    assert holds(build_backbone(BackboneSettings(name="resnet18", weights=str(path))), state)


def test_classifier_prefix_and_counters(
    state: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    given |= {"module.fc.weight": torch.zeros(1000, 512), "module.fc.bias": torch.zeros(1000)}
    torch.save(given, tmp_path / "w.pth")
    backbone = resnet18()
    with caplog.at_level(logging.INFO):
        load_weights(backbone, tmp_path / "w.pth")
    assert holds(backbone, state)
    assert "the classifier was left out (fc.bias, fc.weight)" in caplog.text


def test_weights_that_do_not_fit(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = dict(state)
    del wrong["layer1.0.bn1.bias"]
    wrong["layer4.1.conv2.weight"] = torch.zeros(512, 512, 1, 1)
    wrong |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
    save_file(wrong, tmp_path / "w.safetensors")
    backbone = resnet18()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(WeaksegError) as raised:
        load_weights(backbone, tmp_path / "w.safetensors")
    message = str(raised.value)
    assert "w.safetensors does not fit this backbone" in message
    assert "1 missing: layer1.0.bn1.bias" in message
    assert "5 unknown: extra.0, extra.1, extra.2, …" in message
    assert "1 of another shape: layer4.1.conv2.weight (512, 512, 1, 1) instead of (512, 512, 3, 3)" in message
    assert holds(backbone, before)


def test_unreadable_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"none\.pth do not exist"):
        load_weights(resnet18(), tmp_path / "none.pth")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(WeaksegError, match=r"text\.safetensors is not a readable safetensors file"):
        load_weights(resnet18(), tmp_path / "text.safetensors")
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:100_000])
    with pytest.raises(WeaksegError, match=r"half\.pth is not a file of plain tensors"):
        load_weights(resnet18(), tmp_path / "half.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(WeaksegError, match=r"nested\.pth holds no flat table of named tensors"):
        load_weights(resnet18(), tmp_path / "nested.pth")


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_the_file(
    state: dict[str, Tensor], tmp_path: Path, suffix: str, value: float
) -> None:
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    broken = {**state, name: torch.full_like(state[name], value)}
    path = tmp_path / f"x{suffix}"
    torch.save(broken, path) if suffix == ".pth" else save_file(broken, path)
    with pytest.raises(WeaksegError, match=rf"x\{suffix} holds numbers that are not finite .*1 of .*{name}"):
        read_state(path)


def test_runs_no_code_of_a_file(tmp_path: Path) -> None:
    torch.save({"conv1.weight": _Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"conv1.weight": _Trap(tmp_path / "sprung")}, protocol=2))
    for name in ("trap.pth", "raw.pth"):
        with pytest.raises(WeaksegError, match=f"{name} is not a file of plain tensors"):
            load_weights(resnet18(), tmp_path / name)
    assert not (tmp_path / "sprung").exists()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RETRY_WAITS", (0.0,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server of this machine offers its files."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make `content` the published weights of ResNet-18; returns the name of the file."""
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(IMAGENET_FILES, "resnet18", name)
    (folder / name).write_bytes(content)
    return name


def test_downloads_once_into_the_cache(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    name = publish(folder, b"weights" * 500_000, monkeypatch)
    monkeypatch.setenv("WEAKSEG_CACHE", str(tmp_path / "cache"))
    path = imagenet_weights("resnet18", base_url=url)
    assert path == tmp_path / "cache" / name
    assert path.read_bytes() == b"weights" * 500_000
    (folder / name).unlink()
    assert imagenet_weights("resnet18", base_url=url) == path


def test_refuses_a_file_with_another_sha256(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    name = publish(folder, b"right", monkeypatch)
    (folder / name).write_bytes(b"wrong")
    with pytest.raises(WeaksegError, match=rf"{name} came damaged: its SHA-256 starts with \w{{8}}, expected"):
        imagenet_weights("resnet18", base_url=url, folder=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.pth*")) == []
    (tmp_path / "cache" / name).write_bytes(b"wrong")
    with pytest.raises(WeaksegError, match=rf"cache/{name} is damaged.*Delete it"):
        imagenet_weights("resnet18", base_url=url, folder=tmp_path / "cache")


def test_of_many_that_need_a_file_one_downloads_it(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = served
    name = publish(folder, b"weights" * 500_000, monkeypatch)
    asked: list[str] = []
    monkeypatch.setattr(_Handler, "log_message", lambda handler, *args: asked.append(handler.path))
    together = threading.Barrier(4)

    def fetch(_: int) -> Path:
        together.wait()
        return imagenet_weights("resnet18", base_url=url, folder=tmp_path / "cache")

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fetch, range(4))) == {tmp_path / "cache" / name}
    assert asked == [f"/{name}"]
    assert [path.name for path in (tmp_path / "cache").glob("*.pth*")] == [name]


def test_says_what_to_do_without_the_file_on_the_server(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"404.*put the file there as .*resnet50-0676ba61\.pth.*weights: null"):
        imagenet_weights("resnet50", base_url=served[1], folder=tmp_path)
    assert list(tmp_path.glob("*.pth*")) == []


def test_says_what_to_do_offline(tmp_path: Path) -> None:
    with socket.socket() as bound_but_deaf:
        bound_but_deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound_but_deaf.getsockname()[1]}"
        with pytest.raises(WeaksegError, match="could not be downloaded") as raised:
            imagenet_weights("mobilenet_v2", base_url=url, folder=tmp_path)
    message = str(raised.value)
    assert str(tmp_path / "mobilenet_v2-b0353104.pth") in message
    assert message.count(". ") == 0  # one sentence


def test_no_imagenet_weights_for_small() -> None:
    with pytest.raises(WeaksegError, match=r'no ImageNet weights for the backbone "small"\. Set weights: null'):
        build_backbone(BackboneSettings(name="small"))
