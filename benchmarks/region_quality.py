"""Which regions follow objects best at an equal number of them: Felzenszwalb's or those of an ultrametric contour map?

    python benchmarks/region_quality.py DATA [--split train] [--every 10]

The ultrametric regions are a watershed of the colour gradient, whose weakest boundaries (mean gradient) are merged away
until there are as many regions as Felzenszwalb's have. `recall`: part of the true boundaries with a region's boundary
at most 2 pixels away; `leak`: part of the pixels that the region's most frequent class leaves out (undersegmentation).
"""

from __future__ import annotations

import argparse
import heapq

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter
from skimage.color import rgb2lab
from skimage.filters import sobel
from skimage.segmentation import find_boundaries, watershed

from weakseg.data.images import read_image
from weakseg.data.opening import open_dataset
from weakseg.labels import VOID
from weakseg.ops.superpixels import Ids, graph_segments, renumbered

TOLERANCE = 2
SETTINGS = ((20, 20), (75, 75), (300, 150))
"""k and min_size of Felzenszwalb's segmentation."""


def ultrametric(image: npt.NDArray[np.uint8], count: int) -> Ids:
    """Regions (H, W) after merging over the weakest boundaries until `count` are left."""
    gradient = np.max([sobel(channel) for channel in rgb2lab(image).transpose(2, 0, 1)], 0)
    ids = watershed(gradient) - 1
    boundary: dict[tuple[int, int], list[float]] = {}
    for a, b, g in (
        (ids[:, 1:], ids[:, :-1], np.maximum(gradient[:, 1:], gradient[:, :-1])),
        (ids[1:], ids[:-1], np.maximum(gradient[1:], gradient[:-1])),
    ):
        place = a != b
        for i, j, value in zip(a[place].tolist(), b[place].tolist(), g[place].tolist(), strict=True):
            of_pair = boundary.setdefault((min(i, j), max(i, j)), [0.0, 0])
            of_pair[0] += value
            of_pair[1] += 1
    near: list[dict[int, list[float]]] = [{} for _ in range(ids.max() + 1)]
    for (i, j), value in boundary.items():
        near[i][j] = near[j][i] = value
    heap = [(total / length, i, j) for (i, j), (total, length) in boundary.items()]
    heapq.heapify(heap)
    parent, left = list(range(len(near))), len(near)
    while left > count and heap:
        strength, i, j = heapq.heappop(heap)
        if j not in near[i] or near[i][j][0] / near[i][j][1] != strength:
            continue  # merged since, or of another strength by now
        del near[i][j], near[j][i]
        for other, value in near[j].items():
            del near[other][j]
            old = near[i].get(other, [0.0, 0])
            near[i][other] = near[other][i] = [old[0] + value[0], old[1] + value[1]]
            new = near[i][other]
            heapq.heappush(heap, (new[0] / new[1], min(i, other), max(i, other)))
        near[j] = {}
        parent[j], left = i, left - 1
    roots = np.arange(len(parent))
    for region in range(len(parent)):
        root = region
        while parent[root] != root:
            root = parent[root]
        roots[region] = root
    return renumbered(roots[ids])


def counts(ids: Ids, truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """True boundary found, true boundary, pixels left out, pixels, regions."""
    judged = truth != VOID
    # A void border stands between object and background: its middle is as good as either side.
    edge = find_boundaries(np.where(judged, truth, 0), mode="thick")
    near = maximum_filter(find_boundaries(ids, mode="thick"), 2 * TOLERANCE + 1)
    table = np.zeros((ids.max() + 1, VOID + 1), np.int64)
    np.add.at(table, (ids, truth), 1)
    left_out = table[:, :VOID].sum() - table[:, :VOID].max(1).sum()
    return np.array([(edge & near).sum(), edge.sum(), left_out, judged.sum(), ids.max() + 1], np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--split", default="train")
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    samples = [s for s in open_dataset(options.data).split(options.split) if s.mask][:: options.every]
    for k, min_size in SETTINGS:
        totals = np.zeros((2, 5))
        for sample in samples:
            assert sample.mask is not None
            image, truth = read_image(sample.image), sample.mask.read()
            graph = graph_segments(image, k=k, min_size=min_size)
            for row, ids in enumerate((graph, ultrametric(image, int(graph.max()) + 1))):
                totals[row] += counts(ids, truth)
        for title, row in zip(("Felzenszwalb", "ultrametric"), totals, strict=True):
            found, edge, left_out, pixels, regions = row
            print(
                f"k {k:3} min_size {min_size:3} {title:12} regions {regions / len(samples):6.1f} "
                f"recall {found / edge:.3f} leak {left_out / pixels:.4f}"
            )


if __name__ == "__main__":
    main()
