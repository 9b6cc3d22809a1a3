"""Which regions follow objects best at an equal number of them: Felzenszwalb's or those of an ultrametric contour map?

    python benchmarks/region_quality.py DATA [--split train] [--every 10]

The ultrametric regions are a watershed of the colour gradient, merged (by the contours between them, or by Ward's
criterion on their colours) until there are as many as Felzenszwalb's.
`recall`: part of the true boundaries with a boundary of regions at most 2 pixels away; `leak`: part of the pixels that
the most frequent class of each region leaves out (undersegmentation).
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


def ultrametric(image: npt.NDArray[np.uint8], count: int, by: str) -> Ids:
    """Regions (H, W) after merging neighbours, the cheapest first, until `count` are left.

    The cost is the mean gradient on the common boundary ("contour"), or what merging adds to the squared distances of
    colours from their region's mean ("ward").
    """
    lab = rgb2lab(image)
    gradient = np.max([sobel(channel) for channel in lab.transpose(2, 0, 1)], 0)
    ids = watershed(gradient) - 1
    size = np.bincount(ids.ravel()).astype(float)
    colour = np.stack([np.bincount(ids.ravel(), lab[..., c].ravel()) for c in range(3)], 1)
    near: list[dict[int, npt.NDArray[np.float64]]] = [{} for _ in size]  # sum of gradients and length
    for one, two in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        i, j, strength = ids[one], ids[two], np.maximum(gradient[one], gradient[two])
        place = i != j
        for a, b, value in zip(i[place].tolist(), j[place].tolist(), strength[place].tolist(), strict=True):
            near[a][b] = near[b][a] = near[a].get(b, 0) + np.array([value, 1])

    def cost(i: int, j: int) -> float:
        if by == "contour":
            return float(near[i][j][0] / near[i][j][1])
        apart = colour[i] / size[i] - colour[j] / size[j]
        return float(size[i] * size[j] / (size[i] + size[j]) * (apart @ apart))

    heap = [(cost(i, j), i, j) for i in range(len(near)) for j in near[i] if i < j]
    heapq.heapify(heap)
    parent, left = np.arange(len(near)), len(near)
    while left > count and heap:
        price, i, j = heapq.heappop(heap)
        if j not in near[i] or cost(i, j) != price:
            continue  # merged since, or of another cost by now
        del near[i][j], near[j][i]
        for other, value in near[j].items():
            del near[other][j]
            near[i][other] = near[other][i] = near[i].get(other, 0) + value
        near[j] = {}
        size[i], colour[i], parent[j], left = size[i] + size[j], colour[i] + colour[j], i, left - 1
        for other in near[i]:
            first, second = min(i, other), max(i, other)
            heapq.heappush(heap, (cost(first, second), first, second))
    while (parent[parent] != parent).any():
        parent = parent[parent]
    return renumbered(parent[ids])


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
        totals = np.zeros((3, 5))
        for sample in samples:
            assert sample.mask is not None
            image, truth = read_image(sample.image), sample.mask.read()
            graph = graph_segments(image, k=k, min_size=min_size)
            others = (ultrametric(image, int(graph.max()) + 1, by) for by in ("contour", "ward"))
            for row, ids in enumerate((graph, *others)):
                totals[row] += counts(ids, truth)
        for title, row in zip(("Felzenszwalb", "contour", "ward"), totals, strict=True):
            found, edge, left_out, pixels, regions = row
            print(
                f"k {k:3} min_size {min_size:3} {title:12} regions {regions / len(samples):6.1f} "
                f"recall {found / edge:.3f} leak {left_out / pixels:.4f}"
            )


if __name__ == "__main__":
    main()
