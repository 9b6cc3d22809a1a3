"""Opening a data set whatever its layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from weakseg.data.coco import read_coco
from weakseg.data.corrections import with_corrections
from weakseg.data.dataset import Dataset
from weakseg.data.densepose import TRUTH, read_densepose
from weakseg.data.findings import Report, reading
from weakseg.data.folder import read_folder
from weakseg.data.voc import LISTS, read_voc
from weakseg.errors import WeaksegError


class Format(NamedTuple):
    """A layout of files: how to tell it, in words and in code, and how to read it."""

    layout: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Report | None], Dataset]


def _is_voc(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and (path / LISTS).is_dir()


def _is_coco(path: Path) -> bool:
    return path.suffix == ".json" or any(path.glob("annotations/instances_*.json"))


def _is_densepose(path: Path) -> bool:
    return (path / "images").is_dir() and (path / TRUTH).is_dir()


def _is_folder(path: Path) -> bool:
    return (path / "images").is_dir()


# In this order: a COCO folder may have "images" as well, and one of DensePose has it.
FORMATS = {
    "voc": Format("JPEGImages/ and ImageSets/Segmentation/*.txt", _is_voc, read_voc),
    "coco": Format("annotations/instances_*.json, or the path of one such file", _is_coco, read_coco),
    "densepose": Format("images/SPLIT/ and segcls/SPLIT/", _is_densepose, read_densepose),
    "folder": Format("images/ with labels.csv or labels.json", _is_folder, read_folder),
}


def open_dataset(path: Path | str, format: str | None = None, report: Report | None = None) -> Dataset:
    """Open a data set of the given format ("voc", "coco", "densepose", "folder"), or of the first that its files show,
    with the corrected masks that lie in its folder.

    Raises `WeaksegError` for an unknown format, a path that does not exist or that no format fits, and for the
    problems that the reader finds; with a `report` these go there instead, and what is sound is returned.
    """
    path = Path(path).expanduser()
    if format is not None and format not in FORMATS:
        raise WeaksegError(f'Unknown data set format "{format}". Known are {", ".join(FORMATS)}.')
    if not path.exists():
        raise WeaksegError(f"{path} does not exist.")
    if format is None:
        format = next((name for name, known in FORMATS.items() if known.matches(path)), None)
    if format is None:
        raise WeaksegError(_looked_for(path))
    with reading(path, report) as report:
        dataset = with_corrections(FORMATS[format].read(path, report), report)
        return replace(dataset, notes=tuple(report.notes))


def _looked_for(path: Path) -> str:
    lines = [f"{path} is no data set that weakseg knows. Looked for:"]
    lines += [f"- {name}: {known.layout}" for name, known in FORMATS.items()]
    inside = sorted(below for pattern in ("*", "*/*") for below in path.glob(pattern) if _is_voc(below))
    if inside:
        lines.append(f"There is one inside: {inside[0]}.")
    return "\n".join(lines)
