from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from weakseg.ops.compiled import (
    compiled,
    gather,
    load,
    maximum,
    power_of_two,
    rounded,
    scatter,
    store,
    transpose,
    vector,
)

LANES = [1, 2, 4, 8]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@compiled()
def write_arithmetic(a, b, number, result, lanes):
    x, y = load(a, 0, vector(lanes)), load(b, 0, vector(lanes))
    results = (x + y, x - y, x * y, x / y, number - x, x > y, x >= x, x == y, maximum(x, y), rounded(x * number))
    for i, value in enumerate(results):
        store(result, i * len(lanes), value)


@pytest.mark.parametrize("lanes", [*LANES, 16])
def test_vectors_compute_like_arrays(lanes: int) -> None:
    a, b = normal(2, lanes)
    b[-1] = a[-1]
    n, result = np.float32(3), np.empty((10, lanes), np.float32)
    write_arithmetic(a, b, n, result, (0,) * lanes)
    expected = (a + b, a - b, a * b, a / b, n - a, a > b, a >= a, a == b, np.maximum(a, b), np.rint(a * n))
    np.testing.assert_array_equal(result, np.stack(expected).astype(np.float32))


@compiled()
def write_powers(exponents, result, lanes):
    store(result, 0, power_of_two(load(exponents, 0, vector(lanes))))


def test_powers_of_two() -> None:
    exponents, result = np.array([-127, -126, 0, 127], np.float32), np.empty(4, np.float32)
    write_powers(exponents, result, (0,) * 4)
    np.testing.assert_array_equal(result, [0, 2.0**-126, 1, 2.0**127])


@compiled()
def double_rows(source, target, lanes):
    for row in range(len(source)):
        value = load(source, row * len(lanes), vector(lanes))
        store(target, row * len(lanes), value + value)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_vectors_are_read_and_written_where_they_belong(lanes: int, kind: type) -> None:
    source = np.arange(5 * lanes, dtype=kind).reshape(5, lanes) - 3
    target = np.full((7, lanes), 99, kind)
    double_rows(source, target[1:6], (0,) * lanes)
    np.testing.assert_array_equal(target[1:6], 2 * source)
    assert (target[[0, 6]] == 99).all()


@compiled()
def transpose_corner(source, target, lanes):
    transpose(source, 0, source.shape[1], target, 0, target.shape[1], vector(lanes))


@pytest.mark.parametrize("lanes", LANES)
def test_transpose(lanes: int) -> None:
    source, target = normal(lanes, lanes + 1), np.zeros((lanes, lanes + 2), np.float32)
    transpose_corner(source, target, (0,) * lanes)
    np.testing.assert_array_equal(target[:, :lanes], source[:, :lanes].T)
    assert (target[:, lanes:] == 0).all()


@compiled()
def multiply_sparse(columns, weights, values, sums, spread, terms, lanes):
    for row in range(len(columns)):
        store(sums, row * len(lanes), gather(values, columns, weights, row, terms, vector(lanes)))
        scatter(spread, columns, weights, row, terms, load(values, row * len(lanes), vector(lanes)))


@pytest.mark.parametrize(("terms", "lanes"), [(3, 1), (6, 2), (2, 8)])
def test_sparse_rows(terms: int, lanes: int) -> None:
    """Both products with a sparse matrix, and with its transpose, equal those of the dense one."""
    rng = np.random.default_rng(0)
    columns = np.stack([rng.permutation(7)[:terms] for _ in range(7)]).astype(np.uint32)
    weights, values = normal(7, terms), normal(7, lanes)
    dense = np.zeros((7, 7), np.float32)
    np.put_along_axis(dense, columns.astype(np.int64), weights, axis=1)
    sums, spread = np.zeros((2, 7, lanes), np.float32)
    multiply_sparse(columns, weights, values, sums, spread, (0,) * terms, (0,) * lanes)
    np.testing.assert_allclose(sums, dense @ values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(spread, dense.T @ values, rtol=1e-4, atol=1e-5)


def residual(x, y):
    return x * x - y


def test_functions_fuse_or_not_whoever_calls_them_first() -> None:
    """A rounded product less itself is 0; a difference that fuses with the product is the rounding error."""
    called_first, alone = compiled(inner=True)(residual), compiled()(residual)

    @compiled(fastmath={"contract"})
    def call(x, y):
        return called_first(x, y)

    assert call(0.1, 0.1 * 0.1) == alone(0.1, 0.1 * 0.1) == 0


def twice(x):
    return x + x


def test_machine_code_of_several_processes_is_not_mixed_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes that begin with an empty folder at the same time overwrite each other's files."""
    for process, argument in enumerate((3, 0.5)):
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / str(process)))
        assert compiled()(twice)(argument) == 2 * argument
    for file in tmp_path.glob("0/*/*.nbc"):
        shutil.copy(file, next(tmp_path.glob("1/*")))
    for argument, hits in ((3, 0), (0.5, 1)):
        function = compiled()(twice)
        assert function(argument) == 2 * argument
        assert sum(function.stats.cache_hits.values()) == hits


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_after_compiling_as_before(enabled: bool) -> None:
    def unknown(x):
        return x.there_is_no_such_attribute

    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(numba.TypingError):
            compiled()(unknown)(1)
        assert gc.isenabled() == enabled
        assert compiled()(twice)(2j) == 4j
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_compiles_where_nothing_can_be_kept_on_disk() -> None:
    names: dict = {}
    exec("def double(x):\n    return 2 * x", names)  # no file, so there is no folder for the cache
    assert compiled()(names["double"])(21) == 42


ANOTHER_NUMBA = """
import sys
import numba
from numba.core import caching

{change}

from weakseg.ops.compiled import compiled, load, store, vector
import numpy as np

def twice(x, lanes):
    value = load(x, 0, vector(lanes))
    store(x, 0, value + value)

function, x = compiled()(twice), np.ones(4, np.float32)
function(x, (0,) * 4)
assert (x == 2).all()
assert type(function._cache) is caching.FunctionCache
print(sum(function.stats.cache_hits.values()))
"""


@pytest.mark.parametrize(
    "change",
    [
        "numba.version_info = numba.version_info._replace(major=999)",
        "sys.modules['numba.core.event'] = None",
    ],
)
def test_with_an_unknown_numba_its_own_cache_has_to_do(change: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ANOTHER_NUMBA.format(change=change))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(script)]
    hits = [subprocess.run(command, env=environment, check=True, capture_output=True).stdout for _ in range(2)]
    assert [int(count) for count in hits] == [0, 1]
