"""Pretrained weights: reading a file of tensors into a backbone, and fetching torchvision's ImageNet weights."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weakseg.download import DownloadError, download
from weakseg.errors import WeaksegError
from weakseg.files import locked
from weakseg.models.backbone import Backbone
from weakseg.models.caffe import read_caffe
from weakseg.models.mxnet import read_mxnet
from weakseg.models.originals import ORIGINALS
from weakseg.progress import Steps

TORCHVISION_URL = "https://download.pytorch.org/models"

# The eight hexadecimal digits are the beginning of the file's SHA-256.
IMAGENET_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
}

CLASSIFIER_PREFIXES = ("fc.", "fc8.", "classifier.")
MAX_WEIGHTS_BYTES = 4 * 1024**3

logger = logging.getLogger(__name__)


def load_weights(backbone: Backbone, path: Path, name: str | None = None) -> None:
    """Fill `backbone` from a `.safetensors` file or a `.pth` file of plain tensors with torchvision's names, or from
    one of the `ORIGINALS`. With its `name` in the registry, those of other backbones are refused.

    A classifier (`fc.*`, `fc8.*`, `classifier.*`) is dropped and logged, a leading `module.` is removed, and the
    counters `num_batches_tracked`, which nothing uses, may be missing. Raises `WeaksegError` for an unreadable file,
    or for missing, foreign or differently shaped tensors; the backbone is then unchanged.
    """
    state = own_names(path, read_state(path), name)
    classifier = sorted(name for name in state if name.startswith(CLASSIFIER_PREFIXES))
    for name in classifier:
        del state[name]
    if classifier:
        logger.info("%s: the classifier was left out (%s).", path, ", ".join(classifier))
    if fault := check_names_and_shapes(state, backbone.state_dict()):
        raise WeaksegError(f"{path} does not fit this backbone. Tensors {fault}. Is it the file of another network?")
    backbone.load_state_dict(state, strict=False)


def own_names(path: Path, state: dict[str, Tensor], backbone: str | None = None) -> dict[str, Tensor]:
    """The state of a backbone with the names of one of the `ORIGINALS` under our names; any other as it is. Raises
    `WeaksegError` for an original that is not of this `backbone`, even if its shapes should fit."""
    for original in ORIGINALS:
        if original.matches(state):
            if backbone is not None and backbone not in original.backbones:
                raise WeaksegError(
                    f"{path} is {original.about}, for the backbone {' or '.join(original.backbones)}, not {backbone}."
                )
            try:
                renamed = original.read(state)
            except WeaksegError as error:
                raise WeaksegError(f"{path} is not quite {original.about}: {error}.") from None
            logger.info("%s is %s; left out: %s.", path, original.about, ", ".join(renamed.ignored) or "nothing")
            return renamed.state
    return state


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors`, `.pth`, `.params` (MXNet) or `.caffemodel` (Caffe) file on the CPU,
    without `module.` prefixes; runs no code of the file. Where there are several tables, their names come first
    (`TABLE.NAME`). Raises `WeaksegError` where it is anything else than tables of finite tensors."""
    if not path.is_file():
        raise WeaksegError(f"The weights {path} do not exist.")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise WeaksegError(f"{path} is larger than {MAX_WEIGHTS_BYTES >> 30} GiB; no weights of ours are.")
    state = READERS.get(path.suffix, _read_torch)(path)
    require_finite(path, state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def require_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise `WeaksegError` for a file of weights that holds NaN or infinite numbers, with which all results are NaN."""
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeaksegError(
            f"{path} holds numbers that are not finite (NaN or infinity), in {len(broken)} of {len(state)} tensors: "
            f"{_some(broken)}. Its training has failed, or the file is damaged. Take another file."
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeaksegError(
            f"{path} is not a readable safetensors file but cut off, damaged or of another kind. Take another copy."
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a strange file can make the reader fail in any way
        # Not the reader's own text: it advises to run the code in the file.
        raise WeaksegError(
            f"{path} is not a file of plain tensors written by torch.save (its reader failed with "
            f"{type(error).__name__}). Convert a file that holds other objects to safetensors."
        ) from None
    if isinstance(state, dict) and len(state) > 1 and all(isinstance(table, dict) for table in state.values()):
        state = {f"{part}.{name}": tensor for part, table in state.items() for name, tensor in table.items()}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeaksegError(
            f"{path} holds no flat table of named tensors. Save the state_dict() of the network alone, without "
            "anything around it."
        )
    return state


READERS: Mapping[str, Callable[[Path], dict[str, Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".params": read_mxnet,
    ".caffemodel": read_caffe,
}
"""By suffix; everything else is taken for a file of `torch.save`."""


def check_names_and_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Which tensors are missing from `state`, unknown or of another shape than `expected`; "" where all fit.

    Counters may be missing.
    """
    missing = [name for name in expected if name not in state and not is_counter(name)]
    foreign = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [("missing", missing), ("unknown", foreign), ("of another shape", reshaped)]
    return "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults if names)


def is_counter(name: str) -> bool:
    """Whether a tensor only counts batches, which old files do not have and nothing here uses."""
    return name.endswith("num_batches_tracked")


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def cache_folder() -> Path:
    """Where downloads are kept: the environment variable WEAKSEG_CACHE, or ~/.cache/weakseg."""
    return Path(os.environ.get("WEAKSEG_CACHE") or "~/.cache/weakseg").expanduser()


def imagenet_weights(name: str, *, base_url: str = TORCHVISION_URL, folder: Path | None = None) -> Path:
    """The file of torchvision's ImageNet weights of a backbone, downloaded into `folder` (the cache) if need be.

    Raises `WeaksegError` where the backbone has none, the server cannot be reached, or the SHA-256 is wrong.
    """
    for original in ORIGINALS:
        if name in original.backbones and original.pretraining == "ImageNet":
            raise WeaksegError(
                f'The ImageNet weights for the backbone "{name}" are nowhere to be downloaded automatically. Get '
                f"{original.about} and set weights to its path, or set weights: null to start from random ones."
            )
    if name not in IMAGENET_FILES:
        raise WeaksegError(
            f'There are no ImageNet weights for the backbone "{name}". Set weights: null to start from random ones.'
        )
    file_name = IMAGENET_FILES[name]
    path = (folder or cache_folder()) / file_name
    if path.is_file():
        _check_sha256(path, f"{path} is damaged", "Delete it and run the same command again.")
    else:
        with locked(path.parent / "download.lock", "download", wait=True):
            if not path.is_file():  # another process may have downloaded it meanwhile
                _download(f"{base_url}/{file_name}", path)
    return path


def _download(url: str, path: Path) -> None:
    try:
        with Steps("MiB", 1 << 20) as steps:
            download([url], path, None, steps.show)
    except DownloadError as error:
        raise WeaksegError(
            f"{path.name} could not be downloaded ({error}): put the file there as {path} by other means, or set "
            "weights to the path of a file, or set weights: null to start from random weights."
        ) from None
    try:
        _check_sha256(path, f"{url} came damaged", "Run the same command again.")
    except WeaksegError:
        path.unlink()
        raise


def _check_sha256(path: Path, fault: str, remedy: str) -> None:
    """Raise `fault` and `remedy` unless the SHA-256 of the file starts with the digits in its name."""
    expected = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected):
        raise WeaksegError(f"{fault}: its SHA-256 starts with {found[:8]}, expected {expected}. {remedy}")
