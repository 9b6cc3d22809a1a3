"""Data sets in the format of MS COCO (Lin et al., ECCV 2014): one JSON file of polygons per split."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report, reading
from weakseg.data.geometry import Places, Size
from weakseg.data.images import IMAGE_SUFFIXES, MAX_PIXELS, file_stamp, find_files, match_name
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.labels import BACKGROUND, VOID, Box, Classes, WeakLabels, label_array
from weakseg.settings import shown

Json = dict[str, Any]


def read_coco(path: Path | str, report: Report | None = None) -> Dataset:
    """Read `annotations/instances_*.json` and the images beside them, or one annotation file given by its path.

    - `instances_train2014.json` is the split "train", any other single file too; its images lie in `train2014`,
      `images/train2014`, `images`, beside the file or in the folder of another split.
    - Classes: the file's categories by ascending id, as labels 1 … C without gaps.
    - Tags: the classes of all annotations, crowds included; an image without annotations has an empty set.
    - Boxes: of all annotations but crowds, widened to whole pixels and cut to the image.
    - Images of LVIS have no `file_name`, but an address (`coco_url`) that ends in it.
    - Ids and numbers may be written as text; an image listed twice has the annotations of both entries.
    - Masks: drawn when they are read, see `PolygonMask`. None for an image with an object without segmentation.
    - Names: the file name without suffix, preceded by the split where two splits use the same.

    Problems go to `report`; without one they are raised together as a `WeaksegError`.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
    files = sorted(path.glob("annotations/instances_*.json")) if path.is_dir() else [path]
    with reading(root, report) as report:
        if not files:
            raise WeaksegError(f"{root} is no COCO data set: it has no annotations/instances_*.json.")
        # An extra list such as minival2014 names images of another split's folder.
        others = [root / _full_name(file) for file in files]
        parts = {}
        for file in files:
            own = [root / _full_name(file), root / "images" / _full_name(file), root / "images", file.parent]
            parts[_split_name(file, files)] = _Part(file, own + others, report)
        first = next(iter(parts.values()))
        for part in parts.values():
            if part.categories != first.categories:
                raise WeaksegError(f"{part.file} and {first.file} have different categories; they must be the same.")
        paths = {picture.path: name for part in parts.values() for name, picture in part.pictures.items()}
        repeated = len(set(paths.values())) < len(paths)
        splits = {
            split: [
                part.sample(picture, f"{split}/{name}" if repeated else name) for name, picture in part.pictures.items()
            ]
            for split, part in parts.items()
        }
        return Dataset(path, "coco", first.classes, splits)


def _full_name(file: Path) -> str:
    return file.stem.removeprefix("instances_")


def _split_name(file: Path, files: list[Path]) -> str:
    """ "train" for instances_train2014.json, unless there is another year of it."""
    if len(files) == 1 and not file.stem.startswith("instances_"):
        return "train"
    names = [_full_name(other).rstrip("0123456789") for other in files]
    short = names[files.index(file)]
    return short if short and names.count(short) == 1 else _full_name(file)


@dataclass(frozen=True)
class PolygonMask:
    """A ground truth drawn from the segmentations of an annotation file.

    A pixel of several objects belongs to the smallest; a crowd region is void where no object covers it.
    `size` is (H, W); `regions` holds (label, segmentation), the label of a crowd being void; a segmentation is a
    list of arrays, the polygons x, y, x, y, …, or a run-length code {"size": [H, W], "counts": …}.
    """

    source: str
    size: Size
    regions: tuple[tuple[int, Any], ...]
    stamp: str

    def read(self) -> npt.NDArray[np.uint8]:
        """The label map (H, W); raises `WeaksegError` for a segmentation that cannot be drawn."""
        from pycocotools import mask as coco_mask

        try:
            codes = [(label, _run_lengths(segmentation, self.size)) for label, segmentation in self.regions]
        except WeaksegError as error:
            raise WeaksegError(f"{self.source}: {error}") from None
        labels = np.full(self.size, BACKGROUND, label_array([label for label, _ in self.regions]).dtype)
        codes.sort(key=lambda item: (item[0] != VOID, -int(coco_mask.area(item[1]))))
        for label, code in codes:
            labels[coco_mask.decode(code) != 0] = label
        return labels

    def fingerprint(self) -> str:
        """Changes when the annotation file does (its size and time of change)."""
        return self.stamp


def _run_lengths(segmentation: Any, size: Size) -> Json:
    """The compressed run-length code of a segmentation that `_segmentation` made."""
    from pycocotools import mask as coco_mask

    height, width = size
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects([list(polygon) for polygon in segmentation], height, width))
    counts = _checked_code(segmentation, size)["counts"]
    if isinstance(counts, list):
        return coco_mask.frPyObjects(segmentation, height, width)
    code = {"size": [height, width], "counts": counts.encode()}
    try:
        coco_mask.decode(code)
    except ValueError:  # runs beyond the image
        raise WeaksegError("the counts of a run-length code do not add up to the image.") from None
    return code


# One annotation file


class _Picture(NamedTuple):
    path: Path
    size: Size
    objects: list[_Object]


class _Object(NamedTuple):
    box: Box
    crowd: bool
    segmentation: Any


class _Part:
    """The pictures of one annotation file by name, with their objects."""

    def __init__(self, file: Path, folders: list[Path], report: Report) -> None:
        self.file = file
        self.report = report
        self.places = Places(report)
        self.stamp = file_stamp(file)
        content = read_json(file)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise WeaksegError(f'{file} is no COCO instance file: it has no list "{key}".')
        self.categories, self.classes, self.labels = self._read_categories(content["categories"])
        self.pictures: dict[str, _Picture] = {}
        self._names: dict[int, str | None] = {}
        self._read_images(content["images"], folders)
        self._read_annotations(content["annotations"])

    def _read_categories(self, categories: list[Any]) -> tuple[dict[int, str], Classes, dict[int, int]]:
        """Names by id, the classes in the order of the ids, and the label of each id."""
        named: dict[int, str] = {}
        for index, item in enumerate(categories):
            where = f"{self.file}, categories[{index}]"
            if not isinstance(item, dict) or not isinstance(item.get("name"), str | int) or "id" not in item:
                raise WeaksegError(
                    f'{where}: a category needs a number "id" and a "name", such as {{"id": 3, "name": "cat"}}.'
                )
            try:
                number = self._identifier(item["id"], where)
            except WeaksegError as error:
                raise WeaksegError(f"{where}: {error}") from None
            name = str(item["name"]).strip()
            if named.setdefault(number, name) != name:
                raise WeaksegError(f"{where}: another category has the same id {number}. Each needs its own.")
        named = dict(sorted(named.items()))
        names = list(dict.fromkeys(named.values()))
        if len(names) < len(named):
            self.report.note("several categories have the same name; they were taken for one class.", str(self.file))
        try:
            classes = Classes(names)
        except WeaksegError as error:
            raise WeaksegError(f"{self.file}: {error}") from None
        return named, classes, {number: classes.label(name) for number, name in named.items()}

    def _identifier(self, value: object, where: str) -> int:
        """An id, which some programs write as text."""
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value.strip()):
            self.report.note("ids are written as text; they were read as numbers.", where)
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise WeaksegError(f"an id is a whole number, found {shown(value)}.")
        return value

    def _read_images(self, images: list[Any], folders: list[Path]) -> None:
        references = [
            str(item.get("file_name", item.get("coco_url"))) if isinstance(item, dict) else "" for item in images
        ]
        for folder in folders:
            found = find_files(folder, IMAGE_SUFFIXES, self.report)
            if any(match_name(reference, found) for reference in references):
                break
        else:
            looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
            example = f' The first is "{references[0]}".' if references else ""
            raise WeaksegError(
                f"None of the {len(images)} images of {self.file} was found.{example} Looked in {looked}."
            )
        self.folder = folder
        for index, item in enumerate(images):
            where = f"{self.file}, images[{index}]"
            try:
                self._add_image(item, found, where)
            except WeaksegError as error:
                self.report.problem(str(error), where)

    def _add_image(self, item: Any, found: Mapping[str, Path], where: str) -> None:
        number = self._identifier(_value(item, "id"), where)
        if number in self._names:
            raise WeaksegError(f"the id {number} is taken by another image.")
        self._names[number] = None
        if not isinstance(reference := _reference(item), str):
            raise WeaksegError(f'"file_name" is text, found {shown(reference)}.')
        name = match_name(reference, found)
        if name is None:
            self.report.problem(f"there is no such image in {self.folder}.", f'{where}, "{reference}"')
            return
        size = self._side(item, "height", where), self._side(item, "width", where)
        if size[0] * size[1] > MAX_PIXELS:
            raise WeaksegError(f"the image has more than {MAX_PIXELS // 10**6} megapixels. Scale it down or remove it.")
        known = self.pictures.get(name)
        if known is not None and known.size != size:
            raise WeaksegError(f'the image "{reference}" is listed twice, with two sizes. Remove one of the entries.')
        if known is not None:
            self.report.note("an image is listed twice; its annotations were put together.", where)
        self._names[number] = name
        self.pictures.setdefault(name, _Picture(found[name], size, []))

    def _side(self, item: Json, key: str, where: str) -> int:
        what = f'"{key}" is a number of pixels above 0'
        side = self.places.number(_value(item, key), what, where)
        if side < 1 or side != int(side):
            raise WeaksegError(f"{what}, found {shown(item[key])}.")
        return int(side)

    def _read_annotations(self, annotations: list[Any]) -> None:
        for index, item in enumerate(annotations):
            where = f"{self.file}, annotations[{index}]"
            try:
                self._add_annotation(item, where)
            except WeaksegError as error:
                self.report.problem(str(error), where)

    def _add_annotation(self, item: Any, where: str) -> None:
        image = self._identifier(_value(item, "image_id"), where)
        category = self._identifier(_value(item, "category_id"), where)
        if image not in self._names:
            raise WeaksegError(f"there is no image with the id {image}.")
        if category not in self.labels:
            raise WeaksegError(f"there is no category with the id {category}.")
        picture = self.pictures.get(self._names[image] or "")
        if picture is None:  # its own problem is reported already
            return
        box = self._box(self.labels[category], _value(item, "bbox"), picture.size, where)
        segmentation = self._segmentation(item.get("segmentation"), picture.size, where)
        picture.objects.append(_Object(box, bool(item.get("iscrowd", 0)), segmentation))

    def _box(self, label: int, bounds: Any, size: Size, where: str) -> Box:
        what = 'the box "bbox" is four numbers [x, y, width, height]'
        x, y, width, height = self.places.numbers(bounds, 4, what, where)
        return self.places.box(label, (x, y, x + width, y + height), size, where)

    def _segmentation(self, segmentation: Any, size: Size, where: str) -> Any:
        """A segmentation that can be drawn: polygons as arrays, or a run-length code; None where there is none.

        COCO has millions of vertices, and a list of Python numbers takes five times the memory of an array.
        """
        if segmentation is None or segmentation == [] or segmentation == {}:
            return None
        if isinstance(segmentation, dict):
            return _checked_code(segmentation, size)
        if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
            raise WeaksegError(
                'a "segmentation" is a list of polygons [[x, y, x, y, …], …] or a run-length code '
                f'{{"size": …, "counts": …}}, found {shown(segmentation)}.'
            )
        polygons = [self._polygon(polygon, size, where) for polygon in segmentation]
        drawn = [polygon for polygon in polygons if len(polygon) >= 6]
        if len(drawn) < len(polygons):
            self.report.note("a polygon of fewer than three points was left out; it has no inside.", where)
        return drawn

    def _polygon(self, values: list[Any], size: Size, where: str) -> array[float]:
        what = "a polygon is a list of numbers [x, y, x, y, …]"
        if len(values) % 2:
            raise WeaksegError(f"{what}, found {len(values)} of them.")
        # Most are numbers throughout, and there are millions.
        if not all(type(value) in (int, float) for value in values):
            values = [self.places.number(value, what, where) for value in values]
        # A coordinate far outside, or one that is not a number, would make a run length of gigabytes. Comparisons miss
        # NaN behind other numbers; their sum shows it.
        largest = 2 * max(size)
        if values and not (max(values) <= largest and min(values) >= -largest and math.isfinite(sum(values))):
            raise WeaksegError("a polygon holds coordinates that are not numbers or lie far outside the image.")
        return array("d", values)

    def sample(self, picture: _Picture, name: str) -> Sample:
        objects = picture.objects
        tags = frozenset(item.box.label for item in objects)
        boxes = tuple(item.box for item in objects if not item.crowd)
        mask = None
        if all(item.segmentation is not None for item in objects):
            regions = ((VOID if item.crowd else item.box.label, item.segmentation) for item in objects)
            drawn = tuple(region for region in regions if region[1])
            mask = PolygonMask(f"{self.file}, {picture.path.name}", picture.size, drawn, self.stamp)
        return Sample(name, picture.path, WeakLabels(tags, boxes), mask)


def _value(item: Any, key: str) -> Any:
    """What an entry says under a key that it needs."""
    if not isinstance(item, dict):
        raise WeaksegError(f"an entry has keys and values, found {shown(item)}.")
    if key not in item:
        raise WeaksegError(f'the key "{key}" is missing.')
    return item[key]


def _reference(item: Any) -> Any:
    """The image's file; LVIS has no more than its address."""
    if isinstance(item, dict) and "file_name" not in item and isinstance(address := item.get("coco_url"), str):
        return address.rpartition("/")[2]
    return _value(item, "file_name")


def _checked_code(code: Json, size: Size) -> Json:
    """A run-length code, checked before code in C meets it."""
    height, width = size
    if code.get("size") != [height, width]:
        raise WeaksegError(
            f"a run-length code is of {shown(code.get('size'))} pixels, not of the image's size [{height}, {width}]."
        )
    counts = code.get("counts")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise WeaksegError("the counts of a run-length code are whole numbers from 0 on.")
        if sum(counts) != height * width:
            raise WeaksegError("the counts of a run-length code do not add up to the image.")
    # Six-bit characters; the last one must not announce another.
    elif not isinstance(counts, str) or not re.fullmatch(r"[0-o]*[0-O]", counts):
        raise WeaksegError("the counts of a run-length code are damaged.")
    return {"size": [height, width], "counts": counts}
