"""Data sets in the layout of PASCAL VOC 2012 (Everingham et al., IJCV 2015), SBD's extra masks included."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from weakseg.data.dataset import Dataset, Sample
from weakseg.data.findings import Report, reading, text_of
from weakseg.data.folder import SIDECARS, LabelReader, read_sidecars
from weakseg.data.geometry import LARGEST, Places, Size, size_of
from weakseg.data.images import IMAGE_SUFFIXES, IndexMask, find_files, match_name
from weakseg.data.pickled import read_pickled_dict
from weakseg.errors import WeaksegError
from weakseg.files import read_json, read_text
from weakseg.labels import BACKGROUND, RESERVED, VOID, VOID_OF_16_BITS, Box, Classes, WeakLabels, folded
from weakseg.settings import shown

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
LISTS = Path("ImageSets", "Segmentation")
OBJECTS = "SegmentationObject"
CONTEXTS = "ContextMask"
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")
MAX_ANNOTATION_BYTES = 16 * 1024**2


def read_voc(root: Path | str, report: Report | None = None) -> Dataset:
    """Read `JPEGImages`, `SegmentationClass[Aug]`, `Annotations` and every list in `ImageSets/Segmentation`.

    - A list is a split. Its lines are names, or pairs `/JPEGImages/x.jpg /SegmentationClassAug/x.png`.
    - Masks: a pair names its own; else a list with "aug" in its name prefers `SegmentationClassAug`, the others
      `SegmentationClass`; where the preferred folder has none the other's is taken. Without either: no mask.
    - Objects: `SegmentationObject`, where instances are drawn.
    - Contexts: `ContextMask`, whose values are those of the classes; not VOC's, the toy data have it.
    - Classes: `classes.json` (name → value in the masks, "background" and "void" allowed), else VOC's 20.
    - Tags: the first of `tags.json` (image → names), `cls_labels.npy` (image → 0/1 per class, as published
      by many papers) and `Annotations/*.xml` that knows the image. They are never taken from masks:
      ground truth becomes a weak label only where a user asks for it (`weakseg.data.simulate`).
    - Boxes: all objects of `Annotations/*.xml`, difficult ones too, parts not. There pixels count from 1 and a box
      includes its last. Where tags are from there, classes all of whose objects are difficult are known as such.
    - Further boxes, points and scribbles: `points.json`, `scribbles.json`, `boxes.json` (`folder.read_sidecars`).

    Problems go to `report`; without one they are raised together as a `WeaksegError`.
    """
    root = Path(root)
    with reading(root, report) as report:
        classes, values = _classes(root)
        images = find_files(root / "JPEGImages", IMAGE_SUFFIXES, report)
        masks = {folder: find_files(root / folder, (".png",), report, note_others=True) for folder in MASK_FOLDERS}
        objects, contexts = (find_files(root / folder, (".png",), report) for folder in (OBJECTS, CONTEXTS))
        weak_labels = _weak_labels(root, images, classes, values, report)
        lists = sorted((root / LISTS).glob("*.txt"))
        if not images or not lists:
            raise WeaksegError(
                f"{root} is no VOC data set: it needs pictures in JPEGImages (found {len(images)}) and lists of their "
                f"names, one per line, in {LISTS.as_posix()}/*.txt (found {len(lists)})."
            )
        splits = {}
        for path in lists:
            folders = MASK_FOLDERS[::-1] if "aug" in path.stem.lower() else MASK_FOLDERS
            samples: dict[str, Sample] = {}
            for line in _read_list(path, report):
                name = match_name(line.image, images)
                if name is None:
                    report.problem(f"there is no such image in {root / 'JPEGImages'}.", f'{line.where}, "{line.image}"')
                    continue
                mask = _find_mask(line, name, masks, folders, report)
                truth = IndexMask(mask, values) if mask else None
                if name in samples:
                    if samples[name].mask == truth:
                        report.note("the image is listed a second time; it counts once.", f'{line.where}, "{name}"')
                    else:
                        report.problem("the image is listed a second time, with another mask.", line.where)
                    continue
                context = IndexMask(contexts[name], values) if name in contexts else None
                samples[name] = Sample(name, images[name], weak_labels(name), truth, objects.get(name), context)
            splits[path.stem] = list(samples.values())
        return Dataset(root, "voc", classes, splits)


# Classes


def _classes(root: Path) -> tuple[Classes, dict[int, int]]:
    """The classes in the order of their values, and the label of each value that masks may hold."""
    path = root / "classes.json"
    if not path.exists():
        classes = Classes(VOC_CLASSES)
        return classes, _translation(classes, {name: classes.label(name) for name in classes.names})
    numbers = read_json(path)
    whole = isinstance(numbers, dict) and all(type(v) is int and 0 <= v <= VOID_OF_16_BITS for v in numbers.values())
    if not whole:
        raise WeaksegError(
            f"{path} must map each class name to its value in the masks, 0 … 255 (of 16 bits: 0 … 65535), such as "
            '{"cat": 8}.'
        )
    numbers = {folded(name) if folded(name) in RESERVED else name: number for name, number in numbers.items()}
    names = sorted(numbers.keys() - set(RESERVED), key=lambda name: numbers[name])
    try:
        classes = Classes(names)
        return classes, _translation(classes, numbers)
    except WeaksegError as error:
        raise WeaksegError(f"{path}: {error}") from None


def _translation(classes: Classes, numbers: Mapping[str, int]) -> dict[int, int]:
    """File value → label."""
    labels = {"background": BACKGROUND, "void": VOID} | {name: classes.label(name) for name in classes.names}
    void = VOID_OF_16_BITS if max(numbers.values(), default=0) > VOID else VOID
    numbers = {"background": BACKGROUND, "void": void, **numbers}
    translation: dict[int, int] = {}
    for name, value in numbers.items():
        if value in translation:
            raise WeaksegError(f'"{name}" and another class have the same value {value}; each needs its own.')
        translation[value] = labels[name]
    return translation


# Lists


class _Line(NamedTuple):
    where: str
    image: str
    mask: tuple[str, str] | None = None


_PAIR = re.compile(r"/JPEGImages/(?P<image>.+?)\s+/(?P<folder>[^/]+)/(?P<mask>.+)")


def _read_list(path: Path, report: Report) -> Iterator[_Line]:
    for number, line in enumerate(text_of(path, report).split("\n"), 1):
        where = f"{path}, line {number}"
        if not (line := line.strip()):
            continue
        if not line.startswith("/"):
            yield _Line(where, line)
        elif (pair := _PAIR.fullmatch(line)) and pair["folder"] in MASK_FOLDERS:
            yield _Line(where, pair["image"], (pair["folder"], pair["mask"]))
        else:
            report.problem(
                "the line is neither the name of an image nor a pair such as "
                '"/JPEGImages/x.jpg /SegmentationClassAug/x.png".',
                f'{where}, "{line}"',
            )


def _find_mask(
    line: _Line, name: str, masks: Mapping[str, Mapping[str, Path]], folders: tuple[str, ...], report: Report
) -> Path | None:
    if line.mask is None:
        return next((masks[folder][name] for folder in folders if name in masks[folder]), None)
    folder, reference = line.mask
    mask = match_name(reference, masks[folder])
    if mask is None:
        report.problem(f"there is no such mask in {folder}.", f'{line.where}, "{reference}"')
        return None
    return masks[folder][mask]


# Weak labels

Tags = dict[str, frozenset[int]]
_XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")


def _weak_labels(
    root: Path, images: Mapping[str, Path], classes: Classes, values: Mapping[int, int], report: Report
) -> Callable[[str], WeakLabels]:
    """A function from an image's name to what is known of it."""
    listed = _read_tags_json(root / "tags.json", images, classes, report)
    published = _read_cls_labels(root / "cls_labels.npy", images, values, report)
    annotations = find_files(root / "Annotations", (".xml",), report)
    beside, label_reader = read_sidecars(root, images, report), LabelReader(classes, report)
    if (unread := root / "labels.json").exists():
        names = ", ".join(SIDECARS)
        report.note(
            f"a VOC data set does not read this file. Its boxes, points, scribbles belong in {names}.", str(unread)
        )

    @cache
    def of(name: str) -> WeakLabels:
        known = WeakLabels()
        if name in annotations:
            known = _read_annotation(annotations[name], name, images[name], classes, report)
        tags = listed.get(name, published.get(name))
        if tags is not None:
            known = replace(known, tags=tags, difficult=frozenset())
        more = label_reader(beside.get(name, []), images[name])
        if known.tags is not None and (denied := more.present() - known.tags):
            names = ", ".join(classes.name(label) for label in sorted(denied))
            report.note(f"the image's tags do not name {names}; these labels are left out.", beside[name][0].where)
            more = _without(more, denied)
        return replace(more, tags=known.tags, boxes=known.boxes + more.boxes, difficult=known.difficult)

    return of


def _without(labels: WeakLabels, denied: Collection[int]) -> WeakLabels:
    return replace(
        labels,
        boxes=tuple(box for box in labels.boxes if box.label not in denied),
        points=tuple(point for point in labels.points if point.label not in denied),
        scribbles=tuple(scribble for scribble in labels.scribbles if scribble.label not in denied),
    )


def _read_tags_json(path: Path, images: Mapping[str, Path], classes: Classes, report: Report) -> Tags:
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise WeaksegError(f'{path} must map each image to the names of its classes, such as {{"x": ["cat"]}}.')
    tags = {}
    for image, names in content.items():
        if (name := match_name(image, images)) is None:
            continue
        try:
            if not isinstance(names, list) or not all(isinstance(tag, str) for tag in names):
                raise WeaksegError("the tags must be a list of class names.")
            tags[name] = frozenset(classes.label(tag) for tag in names)
        except WeaksegError as error:
            report.problem(str(error), f'{path}, image "{image}"', name)
    return tags


def _read_cls_labels(path: Path, images: Mapping[str, Path], values: Mapping[int, int], report: Report) -> Tags:
    """Tags from 0/1 vectors whose element c stands for the class of value c + 1."""
    if not path.exists():
        return {}
    tags = {}
    for key, vector in read_pickled_dict(path).items():
        # A file of that kind writes 2007_000032 as the number 2007000032.
        name = match_name(f"{key // 10**6}_{key % 10**6:06d}" if isinstance(key, int) else key, images)
        if name is None:
            continue
        present = [int(index) + 1 for index in np.flatnonzero(vector)]
        if unknown := [value for value in present if values.get(value, VOID) in (BACKGROUND, VOID)]:
            report.problem(f"no class has the value {unknown[0]}.", f'{path}, image "{key}"', name)
        else:
            tags[name] = frozenset(values[value] for value in present)
    return tags


def _read_annotation(path: Path, name: str, image: Path, classes: Classes, report: Report) -> WeakLabels:
    """Tags and boxes of the objects of one XML file, which is about the image of this name."""
    labels, plain = set(), set()
    boxes = []
    try:
        # Parts (head, hand, foot) lie deeper in the tree and are not found.
        objects = _parse_xml(path).findall("object")
    except WeaksegError as error:
        report.problem(str(error), image=name)
        return WeakLabels(frozenset())
    size = size_of(image) if any(element.find("bndbox") is not None for element in objects) else None
    for element in objects:
        try:
            label = classes.label((element.findtext("name") or "").strip())
            labels.add(label)
            if element.findtext("difficult", "").strip() != "1":
                plain.add(label)
            if (bounds := element.find("bndbox")) is not None:
                boxes.append(_box(label, bounds, size, Places(report), str(path)))
        except WeaksegError as error:
            report.problem(str(error), str(path), name)
    return WeakLabels(frozenset(labels), tuple(boxes), difficult=frozenset(labels - plain))


def _box(label: int, bounds: ElementTree.Element, size: Size | None, places: Places, where: str) -> Box:
    texts = [bounds.findtext(side, "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        raise WeaksegError(f"a box has the sides {shown(texts)}, which are not four numbers.") from None
    if not all(abs(side) <= LARGEST for side in (left, top, right, bottom)):
        raise WeaksegError(f"a box has the sides {shown(texts)}, which are not four numbers of pixels.")
    if left > right or top > bottom:
        raise WeaksegError(f"the box {shown(texts)} (xmin, ymin, xmax, ymax) ends before it begins.")
    return places.box(label, (left - 1, top - 1, right, bottom), size, where)


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root element. A document type is refused, since entities can be made to grow without end."""

    def refuse(*_: object) -> None:
        raise WeaksegError(f"{path} declares a document type, which no annotation needs; refused.")

    if path.stat().st_size > MAX_ANNOTATION_BYTES:
        raise WeaksegError(f"{path} is larger than {MAX_ANNOTATION_BYTES >> 20} MiB; this is no annotation.")
    builder = ElementTree.TreeBuilder()
    # The text is decoded here: the parser knows few encodings, and stumbles over the names of others.
    parser = expat.ParserCreate("utf-8")
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, _: builder.start(name, {})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(_xml_text(path).encode(), True)
        return builder.close()
    except expat.ExpatError as error:
        raise WeaksegError(f"{path} is not readable XML ({error}). Replace it.") from None
    except UnicodeEncodeError:
        raise WeaksegError(f"{path} is not text of the encoding that its first line declares. Replace it.") from None


def _xml_text(path: Path) -> str:
    """The text of an XML file in the encoding that its first line declares, UTF-8 where it declares none."""
    declared = _XML_ENCODING.match(path.read_bytes()[:200])
    name = declared[1].decode() if declared else None
    try:
        "".encode(name or "utf-8")
    except (LookupError, ValueError):
        raise WeaksegError(f'{path} declares the unknown encoding "{name}". Save it again as UTF-8.') from None
    return read_text(path, fallback=name)[0]
