"""A user's own images, with labels in a table or a JSON file.

images/           pictures, at any depth
labels.csv        image,tags[,split]             or    labels.json        see `read_folder`
classes.txt       one class per line (optional)
masks/            label maps under the images' names, .png (optional)
scribbles/        drawn strokes, the same way; 255 is unmarked (optional)
points.json       further boxes, points and scribbles, as in labels.json (optional; also scribbles.json, boxes.json)
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from weakseg.data.dataset import UNLABELLED, Dataset, Sample
from weakseg.data.findings import Report, Reported, reading, text_of
from weakseg.data.geometry import Places, Size, size_of
from weakseg.data.images import IMAGE_SUFFIXES, IndexMask, LabelMap, files_of_images, find_files, image_size, match_name
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.labels import BACKGROUND, VOID, Box, Classes, Point, Scribble, WeakLabels, folded
from weakseg.settings import did_you_mean, dotted, faults, shown

DEFAULT_SPLIT = "train"
COLUMNS = ("image", "tags", "split")
SYNONYMS = {"label": "tags", "labels": "tags"}
DELIMITERS = ",;\t"
SIDECARS = ("points.json", "scribbles.json", "boxes.json")
"""Files beside a data set of any layout with further labels of its images, in the keys of `labels.json`."""
DENSE = 0.8
"""Scribbles that mark more of an image than this are hardly scribbles."""

T = TypeVar("T")


def read_folder(root: Path | str, report: Report | None = None) -> Dataset:
    """Read a folder of images with `labels.csv` or `labels.json`.

    - `labels.csv`: a header, one row per image; tags separated by ";" or "|"; no tags means no objects. Columns in any
      order, separated by ",", ";" or tabs, "label" for "tags"; others are left out. UTF-8, else Windows-1252.
    - `labels.json`: {"classes": [name, …], "images": {image: {"tags": [name, …], "split": name,
      "boxes": [{"class": name, "box": [x0, y0, x1, y1]}], "points": [{"class": name, "point": [x, y]}],
      "scribbles": [{"class": name, "points": [[x, y], …]}]}}}, every key but "images" optional. Coordinates are
      pixels from 0, boxes half-open; fractions widen a box to whole pixels and name the pixel a point lies in. A box
      over the edge is cut to the image. The class of points and scribbles may be "background".
    - Several rows of one image are put together, unless their splits differ.
    - Images are named relative to `images/`, with or without suffix.
    - Classes: `classes.txt`, else "classes", else all names used, in alphabetical order.
    - Values of `masks/` and `scribbles/` are labels: 0 background, 1 … C the classes, 255 void or unmarked. Each
      horizontal run of a drawn stroke becomes one `Scribble` of two vertices: exact, and far less than a `Point`
      per pixel.
    - Sidecars (`read_sidecars`) add boxes, points and scribbles to what the label file says of an image.
    - Splits: "train" where none is given; an image of which nothing is known belongs to "unlabelled".

    Problems go to `report`; without one they are raised together as a `WeaksegError`.
    """
    root = Path(root)
    with reading(root, report) as report:
        images = find_files(root / "images", IMAGE_SUFFIXES, report, note_others=True)
        if not images:
            raise WeaksegError(f"{root / 'images'} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        declared, rows = _read_labels(root, report)
        entries = _entries(rows, images, report)
        beside = read_sidecars(root, images, report)
        classes = _classes(root, declared, [*entries.values(), *beside.values()], report)
        values = classes.own_values()
        masks = files_of_images(root / "masks", images, report)
        drawings = files_of_images(root / "scribbles", images, report)
        label_reader = LabelReader(classes, report)

        splits: dict[str, list[Sample]] = {}
        for name, image in images.items():
            of_image = entries.get(name, [])
            labels = label_reader([*of_image, *beside.get(name, [])], image)
            if name in drawings:
                strokes = _read_strokes(IndexMask(drawings[name], values), image, report)
                labels = WeakLabels(labels.tags, labels.boxes, labels.points, labels.scribbles + strokes)
            mask = IndexMask(masks[name], values) if name in masks else None
            known = bool(of_image) or labels.known or mask is not None or name in report.faulty
            split = of_image[0].data.split if of_image else DEFAULT_SPLIT if known else UNLABELLED
            splits.setdefault(split, []).append(Sample(name, image, labels, mask))
        return Dataset(root, "folder", classes, dict(sorted(splits.items())))


def read_tags(path: Path, images: Mapping[str, Path], classes: Classes) -> dict[str, frozenset[int]]:
    """The labels of the classes that a `labels.csv` or `labels.json` names for `images`, by name; others are left out.

    Raises `WeaksegError` for a file that cannot be read, and for classes that are not among `classes`.
    """
    with reading(path, None) as report:
        rows = _read_json(path)[1] if path.suffix.lower() == ".json" else _read_csv(path, report)
        entries = _entries([row for row in rows if row.fault or match_name(row.image, images)], images, report)
        read_labels = LabelReader(classes, report)
        tags = {name: read_labels.present(of_image) for name, of_image in entries.items()}
    return {name: found for name, found in tags.items() if found is not None}


def read_sidecars(root: Path, images: Mapping[str, Path], report: Report) -> dict[str, list[Entry]]:
    """What the files `SIDECARS` of a data set say of its images, by name, for a `LabelReader`.

    Their splits and classes are left out; images that the data set does not have are a note, tags a problem.
    """
    found: dict[str, list[Entry]] = {}
    for path in (root / name for name in SIDECARS):
        if not path.exists():
            continue
        there = []
        for row in _read_json(path)[1]:
            if isinstance(row.content, dict) and "tags" in row.content:
                name = match_name(row.image, images)
                report.problem("a file of boxes, points and scribbles holds no tags. Remove them.", row.where, name)
            elif match_name(row.image, images) is None:
                report.note("there is no such image; its labels are left out.", row.where)
            else:
                # The split of an image is said elsewhere.
                content = row.content
                if isinstance(content, dict):
                    content = {key: value for key, value in content.items() if key != "split"}
                there.append(row._replace(content=content))
        for name, of_image in _entries(there, images, report, unknown=("tags", "split")).items():
            found.setdefault(name, []).extend(of_image)
    return found


# Label files


_Name = Annotated[str, StringConstraints(strip_whitespace=True)]


class _Spatial(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: _Name = Field(alias="class")


class _Box(_Spatial):
    box: Any


class _Point(_Spatial):
    point: Any


class _Scribble(_Spatial):
    points: Annotated[list[Any], Field(min_length=1)]


class _ImageLabels(BaseModel):
    """What a label file may say of one image. Coordinates are looked at when the image is known."""

    model_config = ConfigDict(extra="forbid")
    tags: list[_Name] | None = None
    boxes: list[_Box] = []
    points: list[_Point] = []
    scribbles: list[_Scribble] = []
    split: str = DEFAULT_SPLIT

    @field_validator("split")
    @classmethod
    def _plain(cls, split: str) -> str:
        if not re.fullmatch(r"\w[\w. -]*", split):
            raise ValueError("a split has letters, digits, spaces, dots, hyphens and underscores only")
        return split

    def names(self) -> set[str]:
        spatial = (*self.boxes, *self.points, *self.scribbles)
        return {*(self.tags or ()), *(item.name for item in spatial)}


class _Row(NamedTuple):
    """What a label file says of an image; `fault` is what is wrong with all of it."""

    where: str
    image: str
    content: Any
    fault: str | None = None


class Entry(NamedTuple):
    """What a label file says of the image of this name, in the right form."""

    where: str
    name: str
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
    text = text_of(path, report)
    declared = re.match(r'"?sep=(.)"?\r?\n', text)  # for Excel
    text = text[declared.end() :] if declared else text
    delimiter, columns = _header(path, text, declared[1] if declared else None, report)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, skipinitialspace=True)
    try:
        next(rows)
        for row in rows:
            where = f"{path}, line {rows.line_num + bool(declared)}"
            if not any(cell.strip() for cell in row):
                continue
            cells = {column: cell.strip() for column, cell in zip(columns, row, strict=False)}
            # Spreadsheets write empty cells behind a row, or leave out those at its end.
            extra = any(cell.strip() for cell in row[len(columns) :])
            if extra or {"image", "tags"}.intersection(columns[len(row) :]):
                fault = (
                    f"{len(row)} columns where the header has {len(columns)}. "
                    'Separate tags with ";" or "|", and put text that holds a comma in double quotes.'
                )
                yield _Row(where, cells.get("image", ""), None, fault)
                continue
            tags = [tag.strip() for tag in re.split(r"[;|]", cells["tags"]) if tag.strip()]
            for tag in tags:
                if re.search("[,/]", tag):
                    report.note(
                        'a tag holds a comma or a slash and is one class so. Tags are separated by ";" or "|".',
                        f'{where}, "{tag}"',
                    )
            yield _Row(where, cells["image"], {"tags": tags, "split": cells.get("split") or DEFAULT_SPLIT})
    except csv.Error:
        raise WeaksegError(
            f"{path}, line {rows.line_num + bool(declared)}: this is not a valid CSV row. Put text in double quotes as "
            "a whole, or not at all; write a quotation mark inside of it twice."
        ) from None


def _header(path: Path, text: str, declared: str | None, report: Report) -> tuple[str, list[str]]:
    """What separates the columns of a table, and their names."""
    first = text.splitlines()[0] if text else ""
    for delimiter in declared or DELIMITERS:
        names = [name.strip().strip('"').strip().lower() for name in first.split(delimiter)]
        columns = [SYNONYMS.get(name, name) for name in names]
        if all(columns.count(column) == 1 for column in ("image", "tags")) and columns.count("split") <= 1:
            for name in names:
                if SYNONYMS.get(name, name) not in COLUMNS:
                    report.note(f'the column "{name}" is not read.', str(path))
            return delimiter, columns
    raise WeaksegError(
        f"{path}, line 1: the header is {shown(first) if first else 'missing'}; it must be image,tags or "
        "image,tags,split, each column once, with commas, semicolons or tabs between columns."
    )


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


def _entries(
    rows: Iterable[_Row], images: Mapping[str, Path], report: Report, unknown: Collection[str] = ()
) -> dict[str, list[Entry]]:
    """The rows that can be used, by the name of their image. `unknown` are keys that this file does not have."""
    entries: dict[str, list[Entry]] = {}
    for where, image, content, fault in rows:
        name = match_name(image, images)
        if fault is not None:
            report.problem(fault, where, name)
            continue
        if name is None:
            report.problem(
                'there is no such image. Names are relative to the folder images, such as "cats/1.jpg".',
                f'{where}, "{image}"',
                image,
            )
            continue
        try:
            entry = Entry(where, name, _ImageLabels.model_validate(content))
        except ValidationError as error:
            for place, text in _mistakes(error, content, unknown):
                report.problem(text, f"{where}, {place}" if place else where, name)
            continue
        others = entries.setdefault(name, [])
        if others and others[0].data.split != entry.data.split:
            report.problem(
                f'the image is in the split "{entry.data.split}" here, and in "{others[0].data.split}" in '
                f"{others[0].where}. It can be in one only.",
                where,
                name,
            )
            continue
        if others:
            report.note("the image has labels already; the labels were put together.", where)
        others.append(entry)
    return entries


def _mistakes(error: ValidationError, content: Any, unknown: Collection[str]) -> Iterator[tuple[str, str]]:
    """The place and the text of each mistake in what a file says of an image. Where a key is missing, an unknown one
    beside it is most likely the same mistake, and is told with it."""
    found = faults(error, content)
    odd: dict[Sequence[str | int], list[str]] = defaultdict(list)
    for fault in found:
        if fault.kind == "extra_forbidden":
            odd[fault.place[:-1]].append(f'"{fault.place[-1]}"')
    lacking = {fault.place[:-1] for fault in found if fault.kind == "missing"}
    for fault in found:
        group, text = fault.place[:-1], f"{fault.text}."
        if fault.kind == "extra_forbidden":
            if group in lacking:
                continue
            known = [key for key in _keys(group) if key not in unknown]
            text = f"unknown key.{did_you_mean(fault.place[-1], known)} Known: {', '.join(known)}."
        elif fault.kind == "missing" and odd[group]:
            text = f"the key is missing; unknown: {', '.join(odd[group])}."
        yield dotted(fault.place), text


def _keys(group: Sequence[str | int]) -> list[str]:
    """The keys that a group of a label file may have."""
    models: dict[str | int, type[BaseModel]] = {"boxes": _Box, "points": _Point, "scribbles": _Scribble}
    model = models[group[0]] if group else _ImageLabels
    return [field.alias or name for name, field in model.model_fields.items()]


def _classes(root: Path, declared: list[str] | None, entries: Sequence[list[Entry]], report: Report) -> Classes:
    path = root / "classes.txt"
    source = path if path.exists() else root / "labels.json" if declared is not None else root
    if path.exists():
        listed = [line.strip() for line in text_of(path, report).splitlines() if line.strip()]
        if declared is not None and declared != listed:
            raise WeaksegError(f'{path} and "classes" in {root / "labels.json"} differ. Keep one of them.')
        declared = listed
    if declared is None:
        used = set().union(*(entry.data.names() for of_image in entries for entry in of_image))
        declared = sorted(name for name in used if not _is_background(name))
        if not declared and report.problems:
            raise Reported
        if not declared:
            raise WeaksegError(f"{root} names no class. Give labels.csv, labels.json or a classes.txt.")
    try:
        return Classes(declared)
    except WeaksegError as error:
        raise WeaksegError(f"{source}: {error}") from None


# Weak labels


def _is_background(name: str) -> bool:
    return folded(name) == "background"


class LabelReader:
    """Makes weak labels of what label files say of an image."""

    def __init__(self, classes: Classes, report: Report) -> None:
        self.classes, self.report, self.places = classes, report, Places(report)

    def __call__(self, entries: Sequence[Entry], image: Path) -> WeakLabels:
        if not entries:
            return WeakLabels()
        spatial = any(entry.data.boxes or entry.data.points or entry.data.scribbles for entry in entries)
        size = size_of(image) if spatial else None
        tags = [tag for entry in entries for tag in self._tags(entry)]
        tagged = any(entry.data.tags is not None for entry in entries)
        return WeakLabels(
            frozenset(tags) if tagged else None,
            tuple(box for entry in entries for box in self._each(entry, "boxes", self._box, size)),
            tuple(point for entry in entries for point in self._each(entry, "points", self._point, size)),
            tuple(stroke for entry in entries for stroke in self._each(entry, "scribbles", self._scribble, size)),
        )

    def present(self, entries: Sequence[Entry]) -> frozenset[int] | None:
        """The classes of all kinds of labels together, None where nothing is said of them."""
        names = {name for entry in entries for name in entry.data.names()}
        if not names and all(entry.data.tags is None for entry in entries):
            return None
        found = []
        for name in sorted(names):
            try:
                found.append(self._label(name))
            except WeaksegError as error:
                self.report.problem(str(error), entries[0].where, entries[0].name)
        return frozenset(found) - {BACKGROUND}

    def _tags(self, entry: Entry) -> Iterator[int]:
        for name in dict.fromkeys(entry.data.tags or ()):
            try:
                yield self._label(name, has_background=False)
            except WeaksegError as error:
                self.report.problem(str(error), entry.where, entry.name)

    def _each(self, entry: Entry, kind: str, read: Callable[..., T], size: Size | None) -> Iterator[T]:
        for index, item in enumerate(getattr(entry.data, kind)):
            where = f"{entry.where}, {kind}[{index}]"
            try:
                yield read(item, size, where)
            except WeaksegError as error:
                self.report.problem(str(error), where, entry.name)

    def _label(self, name: str, *, has_background: bool = True) -> int:
        if not _is_background(name):
            return self.classes.label(name)
        if not has_background:
            raise WeaksegError(f'"{name}" is no tag and has no box; every image has some.')
        return BACKGROUND

    def _box(self, item: _Box, size: Size | None, where: str) -> Box:
        label = self._label(item.name, has_background=False)
        sides = self.places.numbers(item.box, 4, "a box is four numbers [left, top, right, bottom]", where)
        return self.places.box(label, sides, size, where)

    def _point(self, item: _Point, size: Size | None, where: str) -> Point:
        return Point(self._label(item.name), *self._position(item.point, size, where))

    def _scribble(self, item: _Scribble, size: Size | None, where: str) -> Scribble:
        label = self._label(item.name)
        return Scribble(label, tuple(self._position(point, size, where) for point in item.points))

    def _position(self, position: object, size: Size | None, where: str) -> tuple[int, int]:
        x, y = self.places.numbers(position, 2, "a point is two numbers [x, y]", where)
        return self.places.pixel(x, y, size, where)


# Drawn files


def _read_strokes(drawing: IndexMask, image: Path, report: Report) -> tuple[Scribble, ...]:
    try:
        strokes, size = drawing.read(), image_size(image)
        if strokes.shape != size:
            raise WeaksegError(f"{drawing.path} has {_times(strokes.shape)} pixels, its image {_times(size)}.")
    except WeaksegError as error:
        report.problem(str(error))
        return ()
    if np.mean(strokes != VOID) > DENSE:
        black = "; 0, black, is background, and what nobody marked is 255" if (strokes == BACKGROUND).any() else ""
        report.note(f"the scribbles mark more than {DENSE:.0%} of the image{black}.", str(drawing.path))
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
