"""SPML's retrieval: the 20 most similar of many segments, walked through in parts, against a sort of all of them.

    python benchmarks/spml_retrieval.py [--memory 200000] [--repeats 5]

The segments are 144, those of one image, and so many that are remembered, random unit vectors of 64 numbers. Both must
find the same similarities.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from torch import Tensor

import measure
from weakseg.methods.spml.clustering import normalised
from weakseg.methods.spml.retrieval import nearest

QUERIES, DIMENSIONS, NEIGHBOURS = 144, 64, 20


def by_sorting(queries: Tensor, memory: Tensor) -> Tensor:
    return (queries @ memory.T).sort(1, descending=True).indices[:, :NEIGHBOURS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=measure.usually(200_000, 2_000))
    parser.add_argument("--repeats", type=int, default=measure.usually(5, 1))
    arguments = parser.parse_args()
    random = torch.Generator().manual_seed(0)
    queries, memory = (
        normalised(torch.randn(count, DIMENSIONS, generator=random)) for count in (QUERIES, arguments.memory)
    )
    ours, theirs = nearest(queries, memory, NEIGHBOURS), by_sorting(queries, memory)
    similar = queries @ memory.T
    difference = float((similar.gather(1, ours) - similar.gather(1, theirs)).abs().max())
    assert difference <= 1e-5, f"similarities differ by {difference}"
    taken, peer = measure.alternate(
        partial(nearest, queries, memory, NEIGHBOURS), partial(by_sorting, queries, memory), arguments.repeats
    )
    conditions = f"{QUERIES} segments, {arguments.memory} remembered, {DIMENSIONS} numbers each; times of one image"
    table = measure.Table("SPML's retrieval: parts of the memory against a sort of all of it", conditions)
    times = (measure.milliseconds(each, 1) for each in (taken, peer))
    table.rows.append(measure.Row("20 nearest", *times, measure.ratios(taken, peer), 3, "similarities equal"))
    measure.publish(table)


if __name__ == "__main__":
    main()
