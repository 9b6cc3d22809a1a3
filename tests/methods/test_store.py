"""Model folders: what is written comes back, and what is broken is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from weakseg.errors import WeaksegError
from weakseg.labels import Classes
from weakseg.methods.base import Localiser, Method, Segmenter, find_method
from weakseg.methods.store import CONFIG_NAME, WEIGHTS_NAME, Model, load_model, save_model

BACKBONE = {"name": "small", "output_stride": 16, "weights": None}


def new_model(kind: type[Method], method: str) -> Model:
    cls = find_method(kind, method)
    settings = cls.Settings.model_validate({"backbone": BACKBONE})
    torch.manual_seed(3)
    return Model(method, Classes(["kettle", "Löffel"]), cls(settings, 2), {"scales": [1.0, 0.5]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", new_model(Segmenter, "deeplab"))
    return tmp_path / "model"


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    change(config)
    (folder / CONFIG_NAME).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("kind", "method", "word"), [(Segmenter, "deeplab", "segmenter"), (Localiser, "cam", "localiser")]
)
def test_a_model_comes_back(tmp_path: Path, kind: type[Method], method: str, word: str) -> None:
    model = new_model(kind, method)
    save_model(tmp_path / "model", model)
    found = load_model(tmp_path / "model")
    assert (found.kind, found.method) == (model.kind, model.method) == (word, method)
    assert found.network.settings == model.network.settings
    assert (found.classes, found.inference) == (model.classes, model.inference)
    assert not found.network.training
    batch = {"image": torch.rand(1, 3, 33, 47)}
    run = "logits" if kind is Segmenter else "activation_maps"
    with torch.inference_mode():
        torch.testing.assert_close(getattr(found.network, run)(batch), getattr(model.network.eval(), run)(batch))


def test_the_bytes_depend_on_the_model_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, new_model(Localiser, "cam"))
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_pretrained_weights_that_training_began_with_are_not_needed(folder: Path) -> None:
    change_config(folder, lambda config: config["settings"]["backbone"].update(weights="/gone/weights.pth"))
    assert load_model(folder).classes.names == ("kettle", "Löffel")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(WeaksegError, match=r"is no model folder: it has no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "was written by weakseg 0.1.0, which is newer than this one"),
        (lambda c: c.pop("classes"), "config.json is not the configuration of a weakseg model: it needs"),
        (lambda c: c.update(kind="poem"), "config.json is not the configuration of a weakseg model: it needs"),
        (lambda c: c.update(classes=3), "config.json is not the configuration of a weakseg model: it needs"),
        (lambda c: c.update(settings=[1]), "config.json is not the configuration of a weakseg model: it needs"),
        (lambda c: c.update(method="deeplob"), 'There is no segmenter "deeplob". There are: '),
        (lambda c: c["settings"].update(ratse=[1]), 'ratse: unknown setting. Did you mean "rates"?'),
        (
            lambda c: c.update(classes=["kettle", "Löffel", "fork"]),
            "model.safetensors does not hold the weights of deeplab for 3 classes, as config.json says. ",
        ),
        (lambda c: c["settings"].update(rates=[1, 2]), "as config.json says. Tensors "),
    ],
)
def test_a_changed_configuration_is_explained(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_config(folder, change)
    with pytest.raises(WeaksegError) as caught:
        load_model(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("config", ["[]", "3", '"text"', "null"])
def test_a_configuration_of_another_shape(folder: Path, config: str) -> None:
    (folder / CONFIG_NAME).write_text(config)
    with pytest.raises(WeaksegError, match=r"config\.json is not the configuration of a weakseg model"):
        load_model(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(WeaksegError, match=r"model\.safetensors do not exist"):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_weights(folder: Path, length: int) -> None:
    content = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(content[:length])
    with pytest.raises(WeaksegError, match=r"model\.safetensors is not a readable safetensors file"):
        load_model(folder)
