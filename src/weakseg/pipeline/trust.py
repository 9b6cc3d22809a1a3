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
from weakseg.ops.trust import Trust, trust_of
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
    """Write the trust in every class of every image: `before` gives labels (h, w) of the cells of the maps that `read`
    gives, before the CRF; `after` the mask (H, W)."""

    def judge(sample: Sample) -> tuple[str, dict[str, Trust]]:
        maps = read(sample)
        return sample.name, trust_in_classes(maps, before(maps), after(sample))

    mine, found = parallel.share(context.weakly_labelled()), {}
    with Progress("trust", len(mine)) as progress:
        for name, classes in threaded(judge, mine):
            found[name] = {label: _rounded(trust) for label, trust in classes.items()}
            progress.advance()
    merged = {name: classes for part in parallel.gather(found) for name, classes in part.items()}
    if parallel.rank() == 0:
        write_json(folder / TRUST_NAME, dict(sorted(merged.items())))
    parallel.barrier()


def trust_in_classes(maps: ActivationMaps, before: LabelArray, mask: LabelArray) -> dict[str, Trust]:
    """Label → trust, of the classes that have a map. One pixel of the mask (H, W) stands for each cell: those that
    enter a network see more."""
    middle = maps.stride // 2
    rows, columns = (
        np.minimum(np.arange(cells) * maps.stride + middle, side - 1)
        for cells, side in zip(maps.maps.shape[1:], mask.shape, strict=True)
    )
    after = mask[np.ix_(rows, columns)]
    pairs = zip(maps.labels.tolist(), maps.maps, strict=True)
    return {str(label): trust_of(of_class, before == label, after == label) for label, of_class in pairs if label}


def _rounded(trust: Trust) -> Mapping[str, Any]:
    return {"trust": round(trust.value, DIGITS), **{k: round(v, DIGITS) for k, v in trust._asdict().items()}}
