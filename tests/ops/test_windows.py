"""Windows over large images."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weakseg.ops.windows import ALIGNMENT, MARGIN, SMALLEST_SIDE, cells, side_for, windows


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    side=st.integers(SMALLEST_SIDE // ALIGNMENT, 30).map(lambda k: k * ALIGNMENT),
)
def test_every_pixel_is_decided_once_away_from_the_borders_of_its_window(height: int, width: int, side: int) -> None:
    count = np.zeros((-(-height // 4), -(-width // 4)), int)
    area = 0
    for window in windows((height, width), side):
        assert max(window.size) <= side
        for axis, length in enumerate((height, width)):
            seen, decided = window.seen[axis], window.decided[axis]
            assert seen.start % ALIGNMENT == 0
            assert decided.start - seen.start == (MARGIN if seen.start else 0)
            assert seen.stop - decided.stop == (MARGIN if seen.stop < length else 0)
        rows, columns = window.decided
        area += (rows.stop - rows.start) * (columns.stop - columns.start)
        part = count[cells(window.decided, 4)]
        part += 1
        inside = window.inside(4)
        assert part.shape == tuple(s.stop - s.start for s in inside)
    assert (count == 1).all()
    assert area == height * width


def test_sides_fit_the_pixels() -> None:
    assert side_for(1000 * 1000) == 960
    assert side_for(1) == SMALLEST_SIDE
