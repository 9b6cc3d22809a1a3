"""A user's own images, with labels in a table or a JSON file.

images/           pictures, at any depth
labels.csv        image,tags[,split]             or    labels.json        see `read_folder`
classes.txt       one class per line (optional)
masks/            label maps under the images' names, .png (optional)
scribbles/        drawn strokes, the same way; 255 is unmarked (optional)
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report, reading
from weakseg.data.images import IMAGE_SUFFIXES, IndexMask, LabelMap, find_files, image_size, match_name
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.labels import BACKGROUND, VOID, Box, Classes, Point, Scribble, WeakLabels

DEFAULT_SPLIT = "train"
UNLABELLED = "unlabelled"
COLUMNS = ("image", "tags", "split")


def read_folder(root: Path | str, report: Report | None = None) -> Dataset:
    """Read a folder of images with `labels.csv` or `labels.json`.

    - `labels.csv`: UTF-8, a header, one row per image; tags separated by ";" or "|"; no tags means no objects.
    - `labels.json`: {"classes": [name, …], "images": {image: {"tags": [name, …], "split": name,
      "boxes": [{"class": name, "box": [x0, y0, x1, y1]}], "points": [{"class": name, "point": [x, y]}],
      "scribbles": [{"class": name, "points": [[x, y], …]}]}}}, every key but "images" optional. Coordinates are
      pixels from 0, boxes half-open; fractions widen a box to whole pixels and name the pixel a point lies in.
      The class of points and scribbles may be "background".
    - Images are named relative to `images/`, with or without suffix.
    - Classes: `classes.txt`, else "classes", else all names used, in alphabetical order.
    - Values of `masks/` and `scribbles/` are labels: 0 background, 1 … C the classes, 255 void or unmarked. Each
      horizontal run of a drawn stroke becomes one `Scribble` of two vertices: exact, and far less than a `Point`
      per pixel.
    - Splits: "train" where none is given; an image of which nothing is known belongs to "unlabelled".

    Problems go to `report`; without one they are raised together as a `WeaksegError`.
    """
    root = Path(root)
    with reading(root, report) as report:
        images = find_files(root / "images", IMAGE_SUFFIXES, report)
        if not images:
            raise WeaksegError(f"{root / 'images'} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        declared, rows = _read_labels(root, report)
        entries = _entries(rows, images, report)
        classes = _classes(root, declared, entries)
        values = {label: label for label in (*range(len(classes) + 1), VOID)}
        masks = _of_images(root / "masks", images, report)
        drawings = _of_images(root / "scribbles", images, report)

        splits: dict[str, list[Sample]] = {}
        for name, image in images.items():
            entry = entries.get(name)
            labels = _weak_labels(entry, classes, report) if entry else WeakLabels()
            if name in drawings:
                strokes = _read_strokes(IndexMask(drawings[name], values), image, report)
                labels = WeakLabels(labels.tags, labels.boxes, labels.points, labels.scribbles + strokes)
            mask = IndexMask(masks[name], values) if name in masks else None
            known = entry is not None or labels.known or mask is not None
            split = entry.data.split if entry else DEFAULT_SPLIT if known else UNLABELLED
            splits.setdefault(split, []).append(Sample(name, image, labels, mask))
        return Dataset(root, "folder", classes, dict(sorted(splits.items())))


# Label files


_Coordinate = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_Position = Annotated[list[_Coordinate], Field(min_length=2, max_length=2)]


class _Spatial(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(alias="class")


class _Box(_Spatial):
    box: Annotated[list[_Coordinate], Field(min_length=4, max_length=4)]

    @model_validator(mode="after")
    def _not_empty(self) -> _Box:
        x0, y0, x1, y1 = self.box
        if x0 >= x1 or y0 >= y1:
            raise ValueError("the box is empty; its numbers are left, top, right, bottom")
        return self


class _Point(_Spatial):
    point: _Position


class _Scribble(_Spatial):
    points: Annotated[list[_Position], Field(min_length=1)]


class _ImageLabels(BaseModel):
    """What a label file may say of one image."""

    model_config = ConfigDict(extra="forbid")
    tags: list[str] | None = None
    boxes: list[_Box] = []
    points: list[_Point] = []
    scribbles: list[_Scribble] = []
    split: Annotated[str, Field(pattern=r"^\w[\w. -]*$")] = DEFAULT_SPLIT

    def names(self) -> set[str]:
        spatial = (*self.boxes, *self.points, *self.scribbles)
        return {*(self.tags or ()), *(item.name for item in spatial)}


class _Row(NamedTuple):
    where: str
    image: str
    content: Any


class _Entry(NamedTuple):
    where: str
    data: _ImageLabels


def _read_labels(root: Path, report: Report) -> tuple[list[str] | None, Iterable[_Row]]:
    """The classes that the label file lists, if it does, and one row per image."""
    table, document = root / "labels.csv", root / "labels.json"
    if table.exists() and document.exists():
        raise WeaksegError(f"{root} has both labels.csv and labels.json. Keep one of them.")
    if table.exists():
        return None, _read_csv(table, report)
    if document.exists():
        return _read_json(document)
    return None, []


def _read_csv(path: Path, report: Report) -> Iterator[_Row]:
    rows = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
        unknown = [column for column in header if column not in COLUMNS]
        if unknown or "image" not in header or "tags" not in header or len(set(header)) < len(header):
            raise WeaksegError(
                f"{path}, line 1: the header is {', '.join(header) or 'missing'}; it must be image,tags or "
                "image,tags,split, with commas between columns."
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                report.problems.append(
                    f"{where}: {len(row)} columns where the header has {len(header)}. "
                    'Separate tags with ";", and put text that holds a comma in double quotes.'
                )
                continue
            cells = {column: cell.strip() for column, cell in zip(header, row, strict=True)}
            tags = [tag.strip() for tag in re.split(r"[;|]", cells["tags"]) if tag.strip()]
            yield _Row(where, cells["image"], {"tags": tags, "split": cells.get("split") or DEFAULT_SPLIT})
    except csv.Error as error:
        raise WeaksegError(f"{path}, line {rows.line_num}: this is not a valid CSV row ({error}).") from None


def _read_json(path: Path) -> tuple[list[str] | None, list[_Row]]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), dict):
        raise WeaksegError(f'{path} must be an object with "images": {{image: {{"tags": [name, …]}}}}.')
    if unknown := sorted(content.keys() - {"classes", "images"}):
        raise WeaksegError(f'{path} has the unknown key "{unknown[0]}"; known are "classes" and "images".')
    classes = content.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise WeaksegError(f'{path}: "classes" must be a list of names.')
    return classes, [_Row(f'{path}, image "{image}"', image, labels) for image, labels in content["images"].items()]


def _entries(rows: Iterable[_Row], images: Mapping[str, Path], report: Report) -> dict[str, _Entry]:
    """The rows that can be used, by the name of their image."""
    entries: dict[str, _Entry] = {}
    for where, image, content in rows:
        name = match_name(image, images)
        if name is None:
            report.problems.append(
                f'{where}: there is no image "{image}". Names are relative to the folder images, such as "cats/1.jpg".'
            )
        elif name in entries:
            report.problems.append(f'{where}: the image "{name}" has labels already, in {entries[name].where}.')
        else:
            try:
                entries[name] = _Entry(where, _ImageLabels.model_validate(content))
            except ValidationError as error:
                for fault in error.errors():
                    place = " → ".join(str(part) for part in fault["loc"])
                    report.problems.append(f"{where}: {place + ': ' if place else ''}{fault['msg']}.")
    return entries


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeaksegError(f"{path} is not UTF-8 text (byte {error.start}). Save it again as UTF-8.") from None


def _classes(root: Path, declared: list[str] | None, entries: Mapping[str, _Entry]) -> Classes:
    path = root / "classes.txt"
    source = path if path.exists() else root / "labels.json" if declared is not None else root
    if path.exists():
        listed = [line.strip() for line in _read_text(path).splitlines() if line.strip()]
        if declared is not None and declared != listed:
            raise WeaksegError(f'{path} and "classes" in {root / "labels.json"} differ. Keep one of them.')
        declared = listed
    if declared is None:
        used = set().union(*(entry.data.names() for entry in entries.values()))
        declared = sorted(used - {"background"})
        if not declared:
            raise WeaksegError(f"{root} names no class. Give labels.csv, labels.json or a classes.txt.")
    try:
        return Classes(declared)
    except WeaksegError as error:
        raise WeaksegError(f"{source}: {error}") from None


# Weak labels


def _weak_labels(entry: _Entry, classes: Classes, report: Report) -> WeakLabels:
    data = entry.data
    labels = {"background": BACKGROUND}
    for name in sorted(data.names() - {"background"}):
        try:
            labels[name] = classes.label(name)
        except WeaksegError as error:
            report.problems.append(f"{entry.where}: {error}")
    if "background" in (data.tags or ()) or any(box.name == "background" for box in data.boxes):
        report.problems.append(f'{entry.where}: "background" is no tag and has no box; every image has some.')
    tags = None if data.tags is None else frozenset(labels[name] for name in data.tags if name in labels)
    boxes = tuple(_widened(labels[item.name], item.box) for item in data.boxes if item.name in labels)
    points = tuple(Point(labels[item.name], *_pixel(item.point)) for item in data.points if item.name in labels)
    scribbles = tuple(
        Scribble(labels[item.name], tuple(_pixel(point) for point in item.points))
        for item in data.scribbles
        if item.name in labels
    )
    return WeakLabels(tags, boxes, points, scribbles)


def _widened(label: int, sides: list[float]) -> Box:
    x0, y0, x1, y1 = sides
    return Box(label, math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))


def _pixel(position: list[float]) -> tuple[int, int]:
    x, y = position
    return math.floor(x), math.floor(y)


# Drawn files


def _of_images(folder: Path, images: Mapping[str, Path], report: Report) -> dict[str, Path]:
    """The PNGs of a folder that belong to images; one that belongs to none is a problem."""
    found = find_files(folder, (".png",), report)
    for name in sorted(found.keys() - images.keys()):
        report.problems.append(f"{found[name]} belongs to no image. Rename it to the image's name, or remove it.")
    return found


def _read_strokes(drawing: IndexMask, image: Path, report: Report) -> tuple[Scribble, ...]:
    try:
        strokes, size = drawing.read(), image_size(image)
        if strokes.shape != size:
            raise WeaksegError(f"{drawing.path} has {_times(strokes.shape)} pixels, its image {_times(size)}.")
    except WeaksegError as error:
        report.problems.append(str(error))
        return ()
    return runs(strokes)


def _times(size: tuple[int, ...]) -> str:
    return " × ".join(str(side) for side in size)


def runs(strokes: LabelMap) -> tuple[Scribble, ...]:
    """The marked pixels of a map (H, W; 255 is unmarked) as horizontal lines, one per run of equal labels."""
    marked = strokes != VOID
    border = strokes[:, 1:] != strokes[:, :-1]
    starts = marked & np.pad(border, ((0, 0), (1, 0)), constant_values=True)
    ends = marked & np.pad(border, ((0, 0), (0, 1)), constant_values=True)
    rows, first = np.nonzero(starts)
    last = np.nonzero(ends)[1]
    labels = strokes[starts]
    return tuple(
        Scribble(int(label), ((int(x0), int(y)), (int(x1), int(y))))
        for label, y, x0, x1 in zip(labels, rows, first, last, strict=True)
    )
