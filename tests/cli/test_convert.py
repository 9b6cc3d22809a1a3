"""`weakseg convert`: published checkpoints in, model folders and backbone weights out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from foreign import caffe_bytes
from weakseg.data.voc import VOC_CLASSES
from weakseg.methods.base import KINDS, checkpoints, find_method
from weakseg.methods.cam import CAM
from weakseg.methods.store import load_model
from weakseg.models.registry import BackboneSettings
from weakseg.models.resnet38 import ResNet38
from weakseg.models.vgg import VGG16
from weakseg.models.weights import check_names_and_shapes, is_counter
from weakseg.pipeline.convert import formats


@pytest.fixture(scope="module")
def network() -> CAM:
    """AffinityNet's classifier with VGG-16."""
    torch.manual_seed(5)
    backbone = BackboneSettings(name="vgg16", output_stride=8, weights=None)
    return CAM(CAM.Settings(backbone=backbone, form="affinitynet", map_power=0.5), 20).eval()


def published(network: CAM) -> dict[str, Tensor]:
    """Its state by its authors' names."""
    state = network.state_dict()
    return {name.removeprefix("backbone.").replace("classifier", "fc8"): tensor for name, tensor in state.items()}


def test_a_model_folder(weakseg: Any, network: CAM, tmp_path: Path) -> None:
    torch.save(published(network), tmp_path / "vgg16_cls.pth")
    answer = weakseg("convert", tmp_path / "vgg16_cls.pth", "--to", tmp_path / "model")
    assert answer.status == 0, answer.err
    assert "AffinityNet's classifier with VGG-16 (vgg16_cls.pth), 20 classes" in answer.out
    assert "31 tensors matched, 0 ignored, 0 missing" in answer.out
    model = load_model(tmp_path / "model")
    assert (model.kind, model.method, model.classes.names) == ("localiser", "cam", VOC_CLASSES)
    images = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        assert torch.equal(model.network.scores({"image": images}), network.scores({"image": images}))
        assert torch.equal(model.network.activation_maps({"image": images}), network.activation_maps({"image": images}))

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    answer = weakseg("predict", tmp_path / "model", tmp_path / "photo.png", "--out", tmp_path / "predicted")
    assert answer.status == 0, answer.err
    assert Image.open(tmp_path / "predicted" / "masks" / "photo.png").size == (32, 24)


def test_own_classes(weakseg: Any, network: CAM, tmp_path: Path) -> None:
    state = published(network)
    state["fc8.weight"] = state["fc8.weight"][:2].clone()
    torch.save(state, tmp_path / "w.pth")
    command = ("convert", tmp_path / "w.pth", "--to", tmp_path / "model")
    answer = weakseg(*command)
    assert answer.status == 1
    assert "The checkpoint has 2 classes. Name them with --classes" in answer.err
    assert not (tmp_path / "model").exists()
    (tmp_path / "names.txt").write_text("kettle\nspoon\n\n", encoding="utf-8")
    answer = weakseg(*command, "--classes", tmp_path / "names.txt")
    assert answer.status == 0, answer.err
    assert load_model(tmp_path / "model").classes.names == ("kettle", "spoon")
    (tmp_path / "names.txt").write_text("kettle\nspoon\nfork\n", encoding="utf-8")
    assert "has 2 classes, but 3 names were given" in weakseg(*command, "--classes", tmp_path / "names.txt").err
    assert "cannot be read as a text file" in weakseg(*command, "--classes", tmp_path / "none.txt").err


def test_wrong_files_get_a_sentence(weakseg: Any, network: CAM, tmp_path: Path) -> None:
    target = tmp_path / "model"

    def error(state: object, *options: str) -> str:
        torch.save(state, tmp_path / "w.pth")
        answer = weakseg("convert", tmp_path / "w.pth", "--to", target, *options)
        assert answer.status == 1
        assert answer.err.startswith("Error: ")
        assert "\n" not in answer.err.strip()
        assert not target.exists()
        return str(answer.err)

    state = published(network)
    assert "is no checkpoint that weakseg knows: it has 1 tensors, such as a.b." in error({"a.b": torch.zeros(1)})
    assert 'no kind of checkpoint "vgg". There are: ' in error(state, "--as", "vgg")
    assert "is not IRNet's CAM network (res50_cam.pth): it has a tensor conv1_1.weight" in error(
        state, "--as", "irnet-cam"
    )
    del state["fc7.bias"]
    state["fc6.weight"] = torch.zeros(2)
    message = error(state)
    assert "is not AffinityNet's classifier with VGG-16" in message
    assert "tensors 1 missing: backbone.fc7.bias; 1 of another shape: backbone.fc6.weight (2,) instead of" in message
    assert "do not exist" in weakseg("convert", tmp_path / "none.pth", "--to", target).err


def test_backbone_weights(weakseg: Any, tmp_path: Path) -> None:
    torch.manual_seed(6)
    network = VGG16()
    arrays = {
        f"{name.rsplit('.', 1)[0]}/{int(name.endswith('bias'))}": tensor.numpy()
        for name, tensor in network.state_dict().items()
    }
    path = tmp_path / "vgg16_20M.caffemodel"
    path.write_bytes(caffe_bytes({**arrays, "fc8/0": np.ones((2, 1024, 1, 1))}))
    answer = weakseg("convert", path, "--to", tmp_path / "weights")
    assert answer.status == 0, answer.err
    assert "trained on ImageNet" in answer.out
    assert "30 tensors matched, 1 ignored (fc8/0), 0 missing" in answer.out
    state = load_file(tmp_path / "weights" / "vgg16.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_every_format_has_a_name_of_its_own_and_a_sentence() -> None:
    assert len(formats()) == len(set(formats().values()))
    assert {"irnet-cam", "deeplab-v2", "resnet38-mxnet", "affinitynet-cam-resnet38"} <= set(formats())


HEADS = {
    "affinitynet-cam-resnet38": {"fc8": (20, 4096)},
    "seam": {"fc8": (21, 4096), "f8_3": (64, 512), "f8_4": (128, 1024), "f9": (192, 195)},
}


@pytest.mark.parametrize("name", HEADS)
def test_checkpoints_on_resnet38(name: str) -> None:
    ((kind, method, checkpoint),) = [item for item in checkpoints() if item[-1].name == name]
    with torch.device("meta"):
        state = {key: tensor for key, tensor in ResNet38().state_dict().items() if not is_counter(key)}
        state |= {f"{layer}.weight": torch.empty(*shape, 1, 1) for layer, shape in HEADS[name].items()}
        assert [item.name for *_, item in checkpoints() if item.matches(state)] == [name]
        reading = checkpoint.read(state)
        assert reading.num_classes == 20
        network = find_method(KINDS[kind], method)(reading.settings, reading.num_classes)
    assert check_names_and_shapes(reading.state, network.state_dict()) == ""
