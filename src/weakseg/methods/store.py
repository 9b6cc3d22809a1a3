"""Model folders: `config.json` says what the network is, `model.safetensors` holds its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from weakseg import __version__
from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_bytes, write_json
from weakseg.labels import Classes
from weakseg.methods.base import Kind, find_method
from weakseg.models.norm import fold_norms
from weakseg.settings import Settings, validate

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
KINDS: Mapping[str, Kind] = {"localiser": "LOCALISER", "refiner": "REFINER", "segmenter": "SEGMENTER"}


@dataclass(frozen=True)
class Model:
    """A network (an `nn.Module`, see `methods.base`) with all that is needed to use it.

    `inference` are the settings it was evaluated with.
    """

    kind: Kind
    method: str
    settings: Settings
    classes: Classes
    network: Any
    inference: Mapping[str, Any]


def save_model(folder: Path, model: Model) -> None:
    """Write a model folder; the configuration comes last, so a folder that has one is complete."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    write_bytes(folder / WEIGHTS_NAME, save(tensors))
    write_json(
        folder / CONFIG_NAME,
        {
            "format": FORMAT,
            "weakseg": __version__,
            "kind": model.kind.lower(),
            "method": model.method,
            "settings": model.settings.model_dump(mode="json"),
            "classes": list(model.classes.names),
            "inference": dict(model.inference),
        },
    )


def set_inference(folder: Path, inference: Mapping[str, Any]) -> None:
    """Change the settings that the model in a folder says it is to be used with."""
    config = read_json(folder / CONFIG_NAME)
    if config["inference"] != inference:
        write_json(folder / CONFIG_NAME, {**config, "inference": dict(inference)})


def load_model(folder: Path) -> Model:
    """Read a model folder. The network is on the CPU, in evaluation mode.

    Raises `WeaksegError` where the folder is none of ours, comes from a newer version or does not fit its weights.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise WeaksegError(f"{folder} is no model folder: it has no {CONFIG_NAME}.")
    config = read_json(folder / CONFIG_NAME)
    try:
        if config["format"] > FORMAT:
            raise WeaksegError(f"{folder} was written by weakseg {config['weakseg']}, which is newer than this one.")
        kind = KINDS[config["kind"]]
        name, classes = str(config["method"]), Classes(map(str, config["classes"]))
        raw, inference = dict(config["settings"]), dict(config["inference"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeaksegError(f"{folder / CONFIG_NAME} is not the configuration of a weakseg model ({error!r}).") from None
    method = find_method(kind, name)
    settings = validate(method.Settings, raw, str(folder / CONFIG_NAME))
    network = method(settings, len(classes), load_weights=False)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except FileNotFoundError:
        raise WeaksegError(f"{folder / WEIGHTS_NAME} does not exist.") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        # PyTorch's first line only says that there is something wrong.
        fault = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise WeaksegError(
            f"{folder / WEIGHTS_NAME} does not hold the weights of {name} for {len(classes)} classes, "
            f"as {CONFIG_NAME} says: {fault}"
        ) from None
    return Model(kind, name, settings, classes, network.eval(), inference)


def make_ready(model: Model, device: torch.device) -> None:
    """Bring a model's network to `device` in the form that is fastest for inference; it cannot be trained any more."""
    fold_norms(model.network)
    model.network.to(device)
