"""The size that photographs are worked on at: training, maps, segmenter and prediction see objects equally large.

Larger photographs are read scaled down, smaller ones as they are. Label maps in files have the size of the photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weakseg.data.dataset import Sample
from weakseg.data.geometry import size_of
from weakseg.threads import threaded


def at_working_size(samples: Sequence[Sample], long_side: int | None) -> Sequence[Sample]:
    """The samples, those whose image has a longer side than `long_side` pixels to be read at this size; None: all as
    they are. One that cannot be read stays as it is."""
    if long_side is None:
        return samples

    def scaled(sample: Sample) -> Sample:
        size = size_of(sample.image)
        return sample if size is None or max(size) <= long_side else replace(sample, long_side=long_side)

    return list(threaded(scaled, samples))
