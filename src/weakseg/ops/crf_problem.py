"""What a dense CRF solves for one unary of an image, without repetition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weakseg.ops.crf_unary import FloatArray


@dataclass(frozen=True)
class Problem:
    """A unary without repetition. Labels with the same unary keep equal marginals, so n of them become one row with
    unary U - ln n whose marginal is the sum of theirs; its message is shared out: 1 / n for each.

    `unary` (R, N); `row` (L,) is the row of each label; `copies` (R,) the number of labels of each row.
    """

    unary: FloatArray
    row: npt.NDArray[np.intp]
    copies: npt.NDArray[np.intp]

    @classmethod
    def of(cls, unary: FloatArray) -> Problem:
        sample = unary[:, :: max(1, unary.shape[1] // 64)]  # most pairs of rows differ in it

        def equal(a: int, b: int) -> bool:
            return np.array_equal(sample[a], sample[b]) and np.array_equal(unary[a], unary[b])

        first: list[int] = []
        row = np.empty(len(unary), np.intp)
        for label in range(len(unary)):
            row[label] = next((r for r, other in enumerate(first) if equal(label, other)), len(first))
            if row[label] == len(first):
                first.append(label)
        copies = np.bincount(row)
        if len(first) < len(unary):
            unary = unary[first] - np.log(copies).astype(np.float32)[:, None]
        return cls(unary, row, copies)

    def all_labels(self, marginals: FloatArray) -> FloatArray:
        """The marginals (L, N) of all labels from those of the rows (R, N)."""
        if len(self.row) == len(self.copies):
            return marginals
        return marginals[self.row] / self.copies[self.row].astype(np.float32)[:, None]
