"""Model folders: `config.json` says what the network is, `model.safetensors` holds its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save

from weakseg.errors import WeaksegError
from weakseg.files import read_json, write_bytes, write_json
from weakseg.labels import Classes
from weakseg.methods.base import KINDS, Method, find_method, kind_of
from weakseg.models.norm import fold_norms
from weakseg.models.weights import check_names_and_shapes, read_state
from weakseg.settings import validate
from weakseg.version import __version__

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


@dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it.

    `method` is its name or the path of its file, `inference` are the settings that it was evaluated with. It was
    trained on images of at most `long_side` pixels, to which larger ones are scaled down; None: of any size.
    `usual_threshold` is the mean of the thresholds that its training images' maps have by themselves, where a run has
    looked for it; model folders do not hold it.
    """

    method: str
    classes: Classes
    network: Method
    inference: Mapping[str, Any]
    long_side: int | None = None
    usual_threshold: float | None = None

    @property
    def kind(self) -> str:
        """ "localiser", "refiner" or "segmenter"."""
        return kind_of(self.network)


def save_model(folder: Path, model: Model) -> None:
    """Write a model folder; the configuration comes last, so a folder that has one is complete."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    write_bytes(folder / WEIGHTS_NAME, save(tensors))
    write_json(
        folder / CONFIG_NAME,
        {
            "format": FORMAT,
            "weakseg": __version__,
            "kind": model.kind,
            "method": model.method,
            "settings": model.network.settings.model_dump(mode="json"),
            "options": model.network.options.model_dump(mode="json"),
            "classes": list(model.classes.names),
            "inference": dict(model.inference),
            "long_side": model.long_side,
        },
    )


def describe_model(
    folder: Path, *, inference: Mapping[str, Any], options: Mapping[str, Any], long_side: int | None
) -> None:
    """Change how the model in a folder says it is to be used."""
    config = read_json(folder / CONFIG_NAME)
    changed = {**config, "inference": dict(inference), "options": dict(options), "long_side": long_side}
    if config != changed:
        write_json(folder / CONFIG_NAME, changed)


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
        kind = cast(type[Method], KINDS[config["kind"]])
        name, classes = str(config["method"]), Classes(map(str, config["classes"]))
        raw, inference = dict(config["settings"]), dict(config["inference"])
        # Older folders have neither.
        options, long_side = dict(config.get("options", {})), config.get("long_side")
        if long_side is not None and (not isinstance(long_side, int) or long_side < 1):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise WeaksegError(
            f'{folder / CONFIG_NAME} is not the configuration of a weakseg model: it needs "format", "kind" '
            f'({", ".join(KINDS)}), "method", "classes" (names), "settings" and "inference" (keys and values).'
        ) from None
    method = find_method(kind, name)
    settings = validate(method.Settings, raw, str(folder / CONFIG_NAME))
    network = method(settings, classes.largest, load_weights=False)
    network.options = validate(method.Options, options, f"{folder / CONFIG_NAME}: options")
    state = read_state(folder / WEIGHTS_NAME)
    if fault := check_names_and_shapes(state, network.state_dict()):
        raise WeaksegError(
            f"{folder / WEIGHTS_NAME} does not hold the weights of {name} for {len(classes)} classes, "
            f"as {CONFIG_NAME} says. Tensors {fault}."
        )
    network.load_state_dict(state, strict=False)
    return Model(name, classes, network.eval(), inference, long_side)


def make_ready(model: Model, device: torch.device) -> None:
    """Bring a model's network to `device` in the form that is fastest for inference; it cannot be trained any more."""
    fold_norms(model.network)
    model.network.to(device)
