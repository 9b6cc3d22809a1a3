"""Weak labels derived from masks: what an annotator would have written with less effort.

Boxes, points and scribbles are drawn per *component*: a largest set of pixels of one class that touch each other,
corners included. In data sets that separate objects by a void border a component is about one object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weakseg.data.dataset import Dataset, Sample
from weakseg.errors import WeaksegError
from weakseg.files import write_text
from weakseg.labels import BACKGROUND, VOID, Box, Classes, Point, Scribble, WeakLabels, label_array, tags_of
from weakseg.threads import threaded

KINDS = ("tags", "boxes", "points", "scribbles")
MIN_AREA = 16
SMOOTHING_WINDOWS = (15, 9, 5, 3, 1)
"""Moving averages over the pixels of a scribble, smoothest first; 1 leaves the path as it is."""

Mask = npt.NDArray[np.bool_]
Vertices = npt.NDArray[np.intp]


def simulate(
    mask: npt.NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    tags: bool = True,
    boxes: bool = True,
    points: int = 1,
    scribbles: bool = True,
    background: bool = True,
    min_area: int = MIN_AREA,
) -> WeakLabels:
    """The weak labels that follow from a label map (H, W): 0 background, 1 … C classes, 255 void.

    Tags are all classes in the mask. Components of fewer than `min_area` pixels get nothing else. Every other
    component gets a tight box, `points` different points (fewer where its interior has fewer pixels) and one
    scribble; the background gets points and scribbles too unless `background` is false. Points lie deep inside:
    at more than half of the component's largest distance to its border. Scribbles follow the smoothed skeleton of
    the component; every pixel of the polyline lies on it, and a tiny component gets a single vertex.

    Points and scribbles draw from streams of their own, so leaving out one kind does not change the other.
    """
    components = [c for c in _components(mask, min_area) if background or c.label != BACKGROUND]
    for_points, for_scribbles = rng.spawn(2)
    return WeakLabels(
        tags=tags_of(np.unique(mask)) if tags else None,
        boxes=tuple(c.box() for c in components if c.label != BACKGROUND) if boxes else (),
        points=tuple(point for c in components for point in c.points(points, for_points)) if points else (),
        scribbles=tuple(c.scribble(for_scribbles) for c in components) if scribbles else (),
    )


@dataclass(frozen=True)
class _Component:
    """The pixels of one component in a window one pixel wider than it on every side, so that its border is
    inside the window even where the image ends. (top, left) is the window's corner in the image."""

    label: int
    top: int
    left: int
    inside: Mask

    @cached_property
    def depth(self) -> npt.NDArray[np.float64]:
        """Each pixel's distance to the nearest pixel outside (pixels)."""
        from scipy.ndimage import distance_transform_edt

        return distance_transform_edt(self.inside)

    def box(self) -> Box:
        height, width = self.inside.shape
        x0, y0 = self.left + 1, self.top + 1
        return Box(self.label, x0, y0, x0 + width - 2, y0 + height - 2)

    def points(self, count: int, rng: np.random.Generator) -> list[Point]:
        """`count` different pixels deeper than half of the deepest."""
        deep = np.argwhere(self.depth > self.depth.max() / 2)
        return [Point(self.label, x, y) for x, y in self._in_image(rng.permutation(deep)[:count])]

    def scribble(self, rng: np.random.Generator) -> Scribble:
        """A line along the middle, as smooth as the component allows."""
        path = _longest_path(self.inside, self.depth)
        # Annotators stop short of the ends, where the skeleton runs into corners.
        first, last = (rng.uniform(0.0, 0.2, size=2) * len(path)).astype(int)
        path = path[first : len(path) - last]
        for window in SMOOTHING_WINDOWS:
            vertices = _smooth(path, window)
            if self.inside[_polyline(vertices)].all():
                break
        return Scribble(self.label, tuple(self._in_image(vertices)))

    def _in_image(self, vertices: Vertices) -> Iterator[tuple[int, int]]:
        """(row, column) pairs of the window as (x, y) of the image."""
        for row, column in vertices.tolist():
            yield column + self.left, row + self.top


def _components(mask: npt.NDArray[np.uint8], min_area: int) -> list[_Component]:
    """The 8-connected components of at least `min_area` pixels, void apart, ordered by class."""
    from scipy.ndimage import find_objects
    from skimage.measure import label

    numbers = label(mask, background=VOID, connectivity=2)
    components = []
    for number, (rows, columns) in enumerate(find_objects(numbers), start=1):
        inside = numbers[rows, columns] == number
        if inside.sum() >= min_area:
            value = int(mask[rows, columns][inside][0])
            components.append(_Component(value, rows.start - 1, columns.start - 1, np.pad(inside, 1)))
    return sorted(components, key=lambda component: component.label)


def _longest_path(inside: Mask, depth: npt.NDArray[np.float64]) -> Vertices:
    """The pixels (row, column) of the longest shortest path through the skeleton, found by two sweeps: the pixel
    farthest from any pixel is one end (exact in a tree; a skeleton around holes may have a longer one)."""
    from scipy.sparse.csgraph import dijkstra
    from skimage.morphology import skeletonize

    skeleton = skeletonize(inside)
    pixels = np.argwhere(skeleton if skeleton.any() else depth == depth.max())
    graph = _neighbour_graph(pixels, inside.shape)
    start = int(np.argmax(depth[tuple(pixels.T)]))
    for _ in range(2):
        distance, previous = dijkstra(graph, indices=start, return_predecessors=True)
        start = int(np.argmax(np.where(np.isfinite(distance), distance, -1)))
    path = [start]
    while previous[path[-1]] >= 0:
        path.append(int(previous[path[-1]]))
    return pixels[path]


def _neighbour_graph(pixels: Vertices, shape: tuple[int, ...]) -> Any:
    """The 8-neighbourhood of pixels as an undirected sparse matrix of distances."""
    from scipy.sparse import csr_array

    index = np.full(shape, -1)
    index[tuple(pixels.T)] = np.arange(len(pixels))
    graph = csr_array((len(pixels), len(pixels)))
    for step in ((0, 1), (1, -1), (1, 0), (1, 1)):
        # The window's margin keeps every neighbour inside the array.
        neighbour = index[tuple((pixels + step).T)]
        edge = neighbour >= 0
        lengths = np.full(edge.sum(), np.hypot(*step))
        graph = graph + csr_array((lengths, (np.flatnonzero(edge), neighbour[edge])), shape=graph.shape)
    return graph + graph.T


def _smooth(path: Vertices, window: int) -> Vertices:
    """A moving average along the path (ends repeated), every few pixels one vertex, both ends included."""
    from scipy.ndimage import uniform_filter1d

    average = uniform_filter1d(path.astype(np.float64), window, axis=0, mode="nearest")
    chosen = np.unique(np.append(np.arange(0, len(path), window // 2 + 1), len(path) - 1))
    return np.rint(average[chosen]).astype(np.intp)


def _polyline(vertices: npt.ArrayLike) -> tuple[Vertices, Vertices]:
    """The rows and columns of the pixels along a polyline of (row, column) vertices (Bresenham)."""
    from skimage.draw import line

    corners = np.asarray(vertices)
    ends = corners[1:] if len(corners) > 1 else corners
    segments = [line(*start, *end) for start, end in zip(corners, ends, strict=False)]
    rows, columns = (np.concatenate(part) for part in zip(*segments, strict=True))
    return rows, columns


def rasterise(labels: WeakLabels, size: tuple[int, int], radius: float = 0) -> npt.NDArray[np.uint8]:
    """The points and scribbles as a partial label map (H, W): 255 where nothing is known.

    A mark covers the pixels at most `radius` pixels from it. Where the marks of several labels reach a pixel, the
    nearest one names it, and if two are equally near the pixel stays unknown; the order of marks plays no part.
    Raises `WeaksegError` for a mark outside the image of `size` (H, W).
    """
    from scipy.ndimage import distance_transform_edt

    nearest = np.full(size, np.inf)
    result = np.full(size, VOID, label_array(sorted(labels.present())).dtype)
    for label, drawn in sorted(_drawn(labels, size).items()):
        distance = distance_transform_edt(~drawn)
        result[distance == nearest] = VOID
        result[distance < nearest] = label
        nearest = np.minimum(nearest, distance)
    result[nearest > radius] = VOID
    return result


def _drawn(labels: WeakLabels, size: tuple[int, int]) -> dict[int, Mask]:
    """For each marked label the pixels (H, W) that its points and lines cover."""
    drawn: dict[int, Mask] = {}
    lines = [*labels.scribbles, *(Scribble(point.label, ((point.x, point.y),)) for point in labels.points)]
    for line in lines:
        for x, y in line.points:
            if not (0 <= x < size[1] and 0 <= y < size[0]):
                raise WeaksegError(
                    f"A mark of label {line.label} at x={x}, y={y} lies outside its image of {size[1]}×{size[0]} "
                    "pixels. Correct the labels."
                )
        drawn.setdefault(line.label, np.zeros(size, bool))[_polyline([(y, x) for x, y in line.points])] = True
    return drawn


def simulate_dataset(
    dataset: Dataset,
    splits: Sequence[str],
    out_path: Path,
    kinds: Collection[str] = KINDS,
    seed: int = 0,
    *,
    points: int = 1,
    background: bool = True,
    min_area: int = MIN_AREA,
    progress: Callable[[], object] | None = None,
) -> None:
    """Write the simulated weak labels of some splits as the `labels.json` of a data set in the `folder` format.

    `kinds` says which of `KINDS` are written. An image's labels depend on `seed` and its name alone. `progress` is
    called after every image. Raises `WeaksegError` for an unknown kind or split, an image without a mask, an
    image in two of the splits (the file names one split for each image), or masks without any class.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        found = ", ".join(unknown) or "nothing"
        raise WeaksegError(f"Cannot simulate {found}: choose some of the weak labels {', '.join(KINDS)}.")
    work = _split_of_each(dataset, splits)

    def entry(item: tuple[Sample, str]) -> tuple[str, dict[str, Any], bool]:
        sample, split = item
        if sample.mask is None:
            raise WeaksegError(
                f'{dataset.root}: image "{sample.name}" of split "{split}" has no mask to derive weak labels from. '
                "Choose a split whose images all have masks."
            )
        mask = sample.mask.read()
        labels = simulate(
            mask,
            np.random.default_rng([seed, *sample.name.encode()]),
            tags="tags" in kinds,
            boxes="boxes" in kinds,
            points=points if "points" in kinds else 0,
            scribbles="scribbles" in kinds,
            background=background,
            min_area=min_area,
        )
        content = {**_named(labels, dataset.classes, kinds), "split": split}
        return sample.name + sample.image.suffix, content, bool(tags_of(np.unique(mask)))

    images = {}
    shown = False
    for name, labels, shows in threaded(entry, work):
        images[name] = labels
        shown |= shows
        if progress is not None:
            progress()
    if images and not shown:
        raise WeaksegError(
            f"{dataset.root}: no mask shows any class, so there is nothing to derive labels from. Classes have "
            "the values 1, 2, … in masks; 255 is void."
        )
    _write_labels(out_path, dataset.classes, images)


def _split_of_each(dataset: Dataset, splits: Sequence[str]) -> list[tuple[Sample, str]]:
    chosen: dict[str, tuple[Sample, str]] = {}
    for split in splits:
        for sample in dataset.split(split):
            other = chosen.setdefault(sample.name, (sample, split))[1]
            if other != split:
                raise WeaksegError(
                    f'{dataset.root}: image "{sample.name}" is in the splits "{other}" and "{split}". '
                    "The label file names one split for each image: choose splits that share none."
                )
    return list(chosen.values())


def _named(labels: WeakLabels, classes: Classes, kinds: Collection[str]) -> dict[str, Any]:
    """The labels of one image in the words of `labels.json`: class names instead of numbers."""
    entry: dict[str, Any] = {
        "tags": [classes.name(label) for label in sorted(labels.tags or ())],
        "boxes": [{"class": classes.name(b.label), "box": [b.x0, b.y0, b.x1, b.y1]} for b in labels.boxes],
        "points": [{"class": classes.name(p.label), "point": [p.x, p.y]} for p in labels.points],
        "scribbles": [{"class": classes.name(s.label), "points": s.points} for s in labels.scribbles],
    }
    return {kind: entry[kind] for kind in KINDS if kind in kinds}


def _write_labels(path: Path, classes: Classes, images: Mapping[str, Any]) -> None:
    """One image a line: compact, and two files can be compared line by line."""
    lines = ",\n".join(
        f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}"
        for name, entry in images.items()
    )
    names = json.dumps(classes.names, ensure_ascii=False)
    write_text(path, f'{{"classes": {names}, "images": {{\n{lines}\n}}}}\n')
