"""Published checkpoints turned into our files: a model folder, or the weights of a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import save
from torch import Tensor

from weakseg.data.voc import VOC_CLASSES
from weakseg.errors import WeaksegError
from weakseg.files import write_bytes
from weakseg.labels import Classes
from weakseg.methods.base import KINDS, Checkpoint, Method, checkpoints, find_method
from weakseg.methods.store import CONFIG_NAME, Model, save_model
from weakseg.models.originals import ORIGINALS, Original
from weakseg.models.registry import BackboneSettings, build_backbone
from weakseg.models.weights import check_names_and_shapes, is_counter, read_state
from weakseg.pipeline.inference import Inference
from weakseg.settings import validate


@dataclass(frozen=True)
class Report:
    """What became of a checkpoint. `matched`, `ignored` and `missing` are names of tensors; missing are only counters
    that nothing uses."""

    about: str
    written: str
    matched: Sequence[str]
    ignored: Sequence[str]
    missing: Sequence[str]

    def __str__(self) -> str:
        ignored = f" ({', '.join(self.ignored)})" if self.ignored else ""
        missing = " (counters num_batches_tracked, which nothing uses)" if self.missing else ""
        return (
            f"{self.about}\n"
            f"{len(self.matched)} tensors matched, {len(self.ignored)} ignored{ignored}, "
            f"{len(self.missing)} missing{missing}\n"
            f"{self.written}"
        )


def formats() -> dict[str, str]:
    """The names of all checkpoints that can be converted, and what they are."""
    return {item.name: item.about for *_, item in _known(None)}


def read_classes(path: Path) -> list[str]:
    """The names in a text file with one class per line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise WeaksegError(f"{path} cannot be read as a text file with one class per line.") from None
    return [line.strip() for line in lines if line.strip()]


def convert(path: Path, out: Path, name: str | None = None, classes: Sequence[str] | None = None) -> Report:
    """Write what the checkpoint `path` holds into the folder `out`: a model folder, or `<backbone>.safetensors`.

    `name` is one of `formats()`; None: recognised by the names of the tensors. `classes` are the names of its classes
    in order; None: VOC's if there are 20. Raises `WeaksegError` for a file that is nothing known, or not what it
    seems to be; nothing is written then.
    """
    state = read_state(path)
    found = [item for item in _known(name) if name is not None or item[-1].matches(state)]
    if not found:
        raise WeaksegError(_nothing_known(path, state))
    if len(found) > 1:
        names = ", ".join(item[-1].name for item in found)
        raise WeaksegError(f"{path} can be read in {len(found)} ways: {names}. Choose one with --as.")
    kind, method, item = found[0]
    try:
        if isinstance(item, Original):
            return _convert_backbone(item, state, out)
        assert kind is not None
        return _convert_model(kind, method, item, state, out, classes)
    except _Unfit as fault:
        raise WeaksegError(f"{path} is not {item.about}: {fault}.") from None


class _Unfit(Exception):
    """Why a file is not what it was taken for, as a part of a sentence."""


def _known(name: str | None) -> list[tuple[str | None, str, Checkpoint | Original]]:
    known: list[tuple[str | None, str, Checkpoint | Original]] = [*checkpoints()]
    known += [(None, "", original) for original in ORIGINALS]
    if name is None:
        return known
    named = [item for item in known if item[-1].name == name]
    if not named:
        raise WeaksegError(f'There is no kind of checkpoint "{name}". There are: {", ".join(formats())}.')
    return named


def _nothing_known(path: Path, state: Mapping[str, Tensor]) -> str:
    examples = ", ".join(list(state)[:3])
    return (
        f"{path} is no checkpoint that weakseg knows: it has {len(state)} tensors, such as {examples or 'none'}. "
        f"Known are: {'; '.join(formats().values())}."
    )


def _convert_backbone(original: Original, state: Mapping[str, Tensor], out: Path) -> Report:
    try:
        renamed = original.read(state)
    except WeaksegError as error:
        raise _Unfit(error) from None
    name = original.backbones[0]
    expected = build_backbone(BackboneSettings(name=name, output_stride=8), load_weights=False).state_dict()
    missing = _check(renamed.state, expected)
    target = out / f"{name}.safetensors"
    write_bytes(target, save({key: tensor.float().contiguous() for key, tensor in renamed.state.items()}))
    return Report(
        f"{original.about}, trained on {original.pretraining}",
        f"Weights of the backbone {' or '.join(original.backbones)} in {target}; set weights to this path.",
        list(renamed.state),
        renamed.ignored,
        missing,
    )


def _convert_model(
    kind: str,
    method: str,
    checkpoint: Checkpoint,
    state: Mapping[str, Tensor],
    out: Path,
    classes: Sequence[str] | None,
) -> Report:
    try:
        reading = checkpoint.read(state)
    except WeaksegError as error:
        raise _Unfit(error) from None
    names = _classes(reading.num_classes, classes)
    network = find_method(cast(type[Method], KINDS[kind]), method)(reading.settings, len(names), load_weights=False)
    missing = _check(reading.state, network.state_dict())
    network.load_state_dict(dict(reading.state), strict=False)
    inference = validate(Inference, reading.inference, "inference").model_dump(mode="json", exclude_unset=True)
    save_model(out, Model(method, names, network, inference))
    return Report(
        f"{checkpoint.about}, {len(names)} classes",
        f"Model folder in {out}: {CONFIG_NAME} says what it is.",
        list(reading.state),
        reading.ignored,
        missing,
    )


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """The counters that are missing; raises `_Unfit` for everything else that does not fit."""
    fault = check_names_and_shapes(state, expected)
    if fault:
        raise _Unfit(f"tensors {fault}")
    return [name for name in expected if name not in state and is_counter(name)]


def _classes(count: int | None, names: Sequence[str] | None) -> Classes:
    if names is None and count in (None, len(VOC_CLASSES)):
        return Classes(VOC_CLASSES)
    if names is None:
        raise WeaksegError(f"The checkpoint has {count} classes. Name them with --classes, in the order of training.")
    if count not in (None, len(names)):
        raise WeaksegError(f"The checkpoint has {count} classes, but {len(names)} names were given.")
    return Classes(names)
