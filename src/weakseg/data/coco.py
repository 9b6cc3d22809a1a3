"""Data sets in the format of MS COCO (Lin et al., ECCV 2014): one JSON file of polygons per split."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report, reading
from weakseg.data.images import IMAGE_SUFFIXES, MAX_PIXELS, file_stamp, find_files, match_name
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.labels import BACKGROUND, VOID, Box, Classes, WeakLabels

Json = dict[str, Any]


def read_coco(path: Path | str, report: Report | None = None) -> Dataset:
    """Read `annotations/instances_*.json` and the images beside them, or one annotation file given by its path.

    - `instances_train2014.json` is the split "train", any other single file too; its images lie in `train2014`,
      `images/train2014`, `images`, beside the file or in the folder of another split.
    - Classes: the file's categories by ascending id, as labels 1 … C without gaps.
    - Tags: the classes of all annotations, crowds included; an image without annotations has an empty set.
    - Boxes: of all annotations but crowds, widened to whole pixels and cut to the image.
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
    list of polygons [x, y, x, y, …] or a run-length code {"size": [H, W], "counts": …}.
    """

    source: str
    size: tuple[int, int]
    regions: tuple[tuple[int, Any], ...]
    stamp: str

    def read(self) -> npt.NDArray[np.uint8]:
        """The label map (H, W); raises `WeaksegError` for a segmentation that cannot be drawn."""
        from pycocotools import mask as coco_mask

        try:
            codes = [(label, _run_lengths(segmentation, self.size)) for label, segmentation in self.regions]
        except (TypeError, ValueError, KeyError) as error:
            raise WeaksegError(f"{self.source}: a segmentation cannot be drawn ({error}).") from error
        labels = np.full(self.size, BACKGROUND, np.uint8)
        codes.sort(key=lambda item: (item[0] != VOID, -int(coco_mask.area(item[1]))))
        for label, code in codes:
            labels[coco_mask.decode(code) != 0] = label
        return labels

    def fingerprint(self) -> str:
        """Changes when the annotation file does (its size and time of change)."""
        return self.stamp


def _run_lengths(segmentation: object, size: tuple[int, int]) -> Json:
    """The compressed run-length code of a segmentation, checked before code in C meets it."""
    from pycocotools import mask as coco_mask

    height, width = size
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
        for polygon in polygons:
            if polygon.ndim != 1 or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError("a polygon needs three or more points x, y")
            # A coordinate far outside would make a run length of gigabytes.
            if not (np.isfinite(polygon).all() and np.abs(polygon).max() <= 2 * max(size)):
                raise ValueError("a polygon lies far outside the image")
        return coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        raise ValueError(f"a run-length code is not of the image's size {height} × {width}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
            raise ValueError("the counts of a run-length code do not add up to the image")
        return coco_mask.frPyObjects(segmentation, height, width)
    # Six-bit characters; the last one must not announce another.
    if not isinstance(counts, str) or not re.fullmatch(r"[0-o]*[0-O]", counts):
        raise ValueError("the counts of a run-length code are damaged")
    code = {"size": [height, width], "counts": counts.encode()}
    coco_mask.decode(code)  # raises ValueError for runs beyond the image
    return code


# One annotation file


class _Picture(NamedTuple):
    path: Path
    size: tuple[int, int]
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
        self.stamp = file_stamp(file)
        content = read_json(file)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, dict) or not isinstance(content.get(key), list):
                raise WeaksegError(f'{file} is no COCO instance file: it has no list "{key}".')
        self.categories, self.classes = self._read_categories(content["categories"])
        self.labels = {number: index + 1 for index, number in enumerate(self.categories)}
        self.pictures: dict[str, _Picture] = {}
        self._names: dict[object, str | None] = {}
        self._read_images(content["images"], folders)
        self._read_annotations(content["annotations"])

    def _read_categories(self, categories: list[Any]) -> tuple[dict[int, str], Classes]:
        try:
            named = dict(sorted((int(item["id"]), str(item["name"])) for item in categories))
            classes = Classes(named.values())
        except (TypeError, KeyError, ValueError, OverflowError):
            raise WeaksegError(f'{self.file}: each category needs a number "id" and a "name".') from None
        except WeaksegError as error:
            raise WeaksegError(f"{self.file}: {error}") from None
        if len(named) < len(categories):
            raise WeaksegError(f"{self.file}: two categories have the same id.")
        return named, classes

    def _read_images(self, images: list[Any], folders: list[Path]) -> None:
        references = [str(item.get("file_name")) if isinstance(item, dict) else "" for item in images]
        for folder in folders:
            found = find_files(folder, IMAGE_SUFFIXES, self.report)
            if any(match_name(reference, found) for reference in references):
                break
        else:
            looked = ", ".join(str(folder) for folder in folders)
            raise WeaksegError(f"None of the {len(images)} images of {self.file} was found. Looked in {looked}.")
        for index, item in enumerate(images):
            with self._problems_of(f"images[{index}]"):
                self._add_image(item, found)

    def _add_image(self, item: Json, found: Mapping[str, Path]) -> None:
        number, height, width = item["id"], int(item["height"]), int(item["width"])
        if number in self._names:
            raise ValueError(f"the id {number} is taken by another image")
        self._names[number] = name = match_name(str(item["file_name"]), found)
        if name is None:
            raise ValueError(f'there is no image "{item["file_name"]}"')
        if name in self.pictures:
            raise ValueError(f'the image "{item["file_name"]}" is listed a second time')
        if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
            raise ValueError(f"a size of {height} × {width} pixels is not possible")
        self.pictures[name] = _Picture(found[name], (height, width), [])

    def _read_annotations(self, annotations: list[Any]) -> None:
        for index, item in enumerate(annotations):
            with self._problems_of(f"annotations[{index}]"):
                if item["image_id"] not in self._names:
                    raise ValueError(f"there is no image with the id {item['image_id']}")
                if item["category_id"] not in self.labels:
                    raise ValueError(f"there is no category with the id {item['category_id']}")
                picture = self.pictures.get(self._names[item["image_id"]] or "")
                if picture is None:  # its own problem is reported already
                    continue
                box = _box(self.labels[item["category_id"]], item["bbox"], picture.size)
                picture.objects.append(_Object(box, bool(item.get("iscrowd", 0)), _packed(item.get("segmentation"))))

    @contextmanager
    def _problems_of(self, where: str) -> Iterator[None]:
        """A malformed entry is a problem of the report, and the reading goes on with the next."""
        try:
            yield
        except KeyError as error:
            self.report.problems.append(f"{self.file}, {where}: the key {error} is missing.")
        except (TypeError, ValueError, OverflowError) as error:
            self.report.problems.append(f"{self.file}, {where}: {error}.")

    def sample(self, picture: _Picture, name: str) -> Sample:
        objects = picture.objects
        tags = frozenset(item.box.label for item in objects)
        boxes = tuple(item.box for item in objects if not item.crowd)
        mask = None
        if all(item.segmentation for item in objects):
            regions = tuple((VOID if item.crowd else item.box.label, item.segmentation) for item in objects)
            mask = PolygonMask(f"{self.file}, {picture.path.name}", picture.size, regions, self.stamp)
        return Sample(name, picture.path, WeakLabels(tags, boxes), mask)


def _packed(segmentation: Any) -> Any:
    """Polygons as arrays: COCO has millions of vertices, and a list of Python numbers takes five times the memory."""
    return [array("d", polygon) for polygon in segmentation] if isinstance(segmentation, list) else segmentation


def _box(label: int, bounds: Any, size: tuple[int, int]) -> Box:
    """[x, y, width, height] widened to whole pixels, at least one, and cut to the image."""
    height, width = size
    x, y, box_width, box_height = (float(value) for value in bounds)
    x0, y0 = max(math.floor(x), 0), max(math.floor(y), 0)
    x1 = min(max(math.ceil(x + box_width), x0 + 1), width)
    y1 = min(max(math.ceil(y + box_height), y0 + 1), height)
    if box_width < 0 or box_height < 0 or x0 >= x1 or y0 >= y1:
        raise ValueError(f"the box {bounds} lies outside the image of {height} × {width} pixels")
    return Box(label, x0, y0, x1, y1)
