"""Masks in a run folder that somebody changed since the run wrote them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from weakseg.data.images import file_stamp

MASKS_FOLDER = "masks"


def written_masks(folder: Path) -> dict[str, tuple[str, str]]:
    """Stamp and digest of every mask in the folder of a stage, by the image's name."""
    masks = folder / MASKS_FOLDER
    files = {path.relative_to(masks).with_suffix("").as_posix(): path for path in sorted(masks.rglob("*.png"))}
    return {name: (file_stamp(path), _digest(path)) for name, path in files.items()}


def edited_masks(folder: Path, written: Mapping[str, Sequence[str]]) -> list[str]:
    """The images whose masks in the folder of a stage are not what `written_masks` once saw there."""
    paths = {name: folder / MASKS_FOLDER / f"{name}.png" for name in written}
    return [name for name, path in paths.items() if path.is_file() and _is_edited(path, *written[name])]


def _is_edited(path: Path, stamp: str, digest: str) -> bool:
    # A copy of a run has other times, so the content decides.
    return file_stamp(path) != stamp and _digest(path) != digest


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
