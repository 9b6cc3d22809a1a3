"""Pretrained weights: reading a file of tensors into a backbone, and fetching torchvision's ImageNet weights."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weakseg.errors import WeaksegError
from weakseg.files import atomic_path
from weakseg.models.backbone import Backbone
from weakseg.progress import Progress

TORCHVISION_URL = "https://download.pytorch.org/models"

# The eight hexadecimal digits are the beginning of the file's SHA-256.
IMAGENET_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
}

CLASSIFIER_PREFIXES = ("fc.", "classifier.")
MAX_WEIGHTS_BYTES = 4 * 1024**3
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30

logger = logging.getLogger(__name__)


def load_weights(backbone: Backbone, path: Path) -> None:
    """Fill `backbone` from a `.safetensors` file or a `.pth` file of plain tensors with torchvision's names.

    A classifier (`fc.*`, `classifier.*`) is dropped and logged, a leading `module.` is removed, and the counters
    `num_batches_tracked`, which nothing uses, may be missing. Raises `WeaksegError` for an unreadable file, or for
    missing, foreign or differently shaped tensors; the backbone is then unchanged.
    """
    state = read_state(path)
    classifier = sorted(name for name in state if name.startswith(CLASSIFIER_PREFIXES))
    for name in classifier:
        del state[name]
    if classifier:
        logger.info("%s: the classifier was left out (%s).", path, ", ".join(classifier))
    _check_names_and_shapes(path, state, backbone.state_dict())
    backbone.load_state_dict(state, strict=False)


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` or `.pth` file on the CPU, without `module.` prefixes; runs no code of
    the file. Raises `WeaksegError` where it is anything else than a flat table of tensors."""
    if not path.is_file():
        raise WeaksegError(f"The weights {path} do not exist.")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise WeaksegError(f"{path} is larger than {MAX_WEIGHTS_BYTES >> 30} GiB; no weights of ours are.")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeaksegError(f"{path} is not a readable safetensors file ({error}).") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a strange file can make the reader fail in any way
        # Not the reader's own text: it advises to run the code in the file.
        raise WeaksegError(
            f"{path} is not a file of plain tensors written by torch.save (its reader failed with "
            f"{type(error).__name__}). Convert a file that holds other objects to safetensors."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeaksegError(
            f"{path} holds no flat table of named tensors. Save the state_dict() of the network alone, without "
            "anything around it."
        )
    return state


def _check_names_and_shapes(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [("missing", missing), ("unknown", foreign), ("of another shape", reshaped)]
    found = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults if names)
    if found:
        raise WeaksegError(f"{path} does not fit this backbone. Tensors {found}. Is it the file of another network?")


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def cache_folder() -> Path:
    """Where downloads are kept: the environment variable WEAKSEG_CACHE, or ~/.cache/weakseg."""
    return Path(os.environ.get("WEAKSEG_CACHE") or "~/.cache/weakseg").expanduser()


def imagenet_weights(name: str, *, base_url: str = TORCHVISION_URL, folder: Path | None = None) -> Path:
    """The file of torchvision's ImageNet weights of a backbone, downloaded into `folder` (the cache) if need be.

    Raises `WeaksegError` where the backbone has none, the server cannot be reached, or the SHA-256 is wrong.
    """
    if name not in IMAGENET_FILES:
        raise WeaksegError(
            f'There are no ImageNet weights for the backbone "{name}". Set weights: null to start from random ones.'
        )
    file_name = IMAGENET_FILES[name]
    path = (folder or cache_folder()) / file_name
    if path.is_file():
        _check_sha256(path, file_name, f"{path} is damaged", "Delete it and run the same command again.")
    else:
        _download(f"{base_url}/{file_name}", path)
    return path


def _download(url: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(url, path):
                file.write(chunk)
        _check_sha256(temporary, path.name, f"{url} came damaged", "Run the same command again.")


def _chunks(url: str, path: Path) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            total = int(response.headers.get("Content-Length") or 0)
            with Progress(f"Downloading {path.name}", total >> 20, unit="MiB") as progress:
                while chunk := response.read(CHUNK_BYTES):
                    yield chunk
                    progress.advance()
    except (OSError, http.client.HTTPException) as error:
        raise WeaksegError(
            f"{url} could not be downloaded ({error}): put the file there as {path} by other means, or set weights "
            "to the path of a file, or set weights: null to start from random weights."
        ) from None


def _check_sha256(path: Path, file_name: str, fault: str, remedy: str) -> None:
    """Raise `fault` and `remedy` unless the SHA-256 of `path` starts with the digits in `file_name`."""
    expected = Path(file_name).stem.rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WeaksegError(f"{fault}: its SHA-256 starts with {found[:8]}, expected {expected}. {remedy}")
