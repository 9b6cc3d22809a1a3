from __future__ import annotations

import numpy as np
import pytest

from weakseg.ops.compiled import compiled, float_of_bits, load, multiply_add, store, vector


@compiled()
def scaled_sum(first, second, factor, result, lanes):
    for row in range(len(first)):
        total = multiply_add(vector(lanes), np.float32(1), load(first, row, vector(lanes)))
        store(result, row, multiply_add(total, factor, load(second, row, vector(lanes))))


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_vectors_add_and_scale_rows(lanes: int) -> None:
    first, second = np.random.default_rng(lanes).normal(size=(2, 5, lanes)).astype(np.float32)
    result = np.full((7, lanes), 9, np.float32)
    scaled_sum(first, second, np.float32(0.25), result[1:6], (0,) * lanes)
    np.testing.assert_allclose(result[1:6], first + np.float32(0.25) * second, rtol=1e-6)
    assert (result[[0, 6]] == 9).all()


@compiled()
def one_from_its_bits():
    return float_of_bits(np.int32(127 << 23))


def test_float_of_bits() -> None:
    assert one_from_its_bits() == 1.0


def test_compiles_where_nothing_can_be_kept_on_disk() -> None:
    names: dict = {}
    exec("def double(x):\n    return 2 * x", names)  # no file, so there is no folder for the cache
    assert compiled()(names["double"])(21) == 42
