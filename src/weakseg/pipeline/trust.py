"""How far each pseudo-mask of a stage can be trusted: `trust.json` in its folder (see `ops.trust`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weakseg import parallel
from weakseg.data.dataset import Sample
from weakseg.files import write_json
from weakseg.ops.activation import ActivationMaps
from weakseg.ops.trust import Trust, image_trust, trust_of
from weakseg.pipeline.context import Context
from weakseg.pipeline.inference import LabelArray
from weakseg.progress import Progress
from weakseg.threads import threaded

TRUST_NAME = "trust.json"
DIGITS = 4


def write_trust(
    context: Context,
    folder: Path,
    read: Callable[[Sample], ActivationMaps],
    before: Callable[[ActivationMaps], LabelArray],
    after: Callable[[Sample], LabelArray],
) -> None:
    """Write the trust in every image and its classes: `before` gives labels (h, w) of the cells of the maps that `read`
    gives, before the CRF; `after` the mask (H, W)."""

    def judge(sample: Sample) -> tuple[str, dict[str, Any]]:
        maps = read(sample)
        return sample.name, trust_in(maps, before(maps), after(sample))

    mine, found = parallel.share(context.weakly_labelled()), {}
    with Progress("trust", len(mine)) as progress:
        for name, trust in threaded(judge, mine):
            found[name] = trust
            progress.advance()
    merged = {name: trust for part in parallel.gather(found) for name, trust in part.items()}
    if parallel.rank() == 0:
        write_json(folder / TRUST_NAME, dict(sorted(merged.items())))
    parallel.barrier()


def trust_in(maps: ActivationMaps, before: LabelArray, mask: LabelArray) -> dict[str, Any]:
    """`trust` in an image, None without classes, and in each of its `classes` (label → `ops.trust.Trust` with its
    value). One pixel of the mask (H, W) stands for each cell of the maps and of the labels `before` the CRF (h, w)."""
    middle = maps.stride // 2
    rows, columns = (
        np.minimum(np.arange(cells) * maps.stride + middle, seen - 1) * side // seen
        for cells, seen, side in zip(maps.maps.shape[1:], maps.size, mask.shape, strict=True)
    )
    after = mask[np.ix_(rows, columns)]
    of_classes = maps.maps[maps.has_background :].astype(np.float32)
    labels = maps.labels[maps.has_background :].tolist()
    classes = {
        str(label): _rounded(trust_of(of_class, before == label, after == label))
        for label, of_class in zip(labels, of_classes, strict=True)
    }
    trust = round(image_trust(of_classes, after > 0), DIGITS) if labels else None
    return {"trust": trust, "classes": classes}


def _rounded(trust: Trust) -> Mapping[str, Any]:
    return {"trust": round(trust.value, DIGITS), **{k: round(v, DIGITS) for k, v in trust._asdict().items()}}
