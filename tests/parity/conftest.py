"""Access to the reference vectors, which live outside the repository.

Tests read sizes, seeds and numbers of cases from the vectors, so that other vectors of the same kind serve as well: the
environment variable WEAKSEG_VECTORS names another folder of `fill.py` and folders of `.npz` files.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torch import Tensor

VECTORS = Path(os.environ.get("WEAKSEG_VECTORS") or Path(__file__).resolve().parents[3] / "shared/parity")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cases(file, array): run for each `case` that * in a name of an array stands for"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for marker in metafunc.definition.iter_markers("cases"):
        file, array = marker.args
        # Without the file, one case remains, so that the test is skipped or fails for want of it.
        metafunc.parametrize("case", cases(VECTORS / f"{file}.npz", array) or ["missing"])


def cases(file: Path, array: str) -> list[str]:
    """What `*` in `array` stands for in the names of a file's arrays; none where there is no file."""
    if not file.is_file():
        return []
    with np.load(file, allow_pickle=False) as vectors:
        return matching(vectors.files, array)


def matching(names: Iterable[str], array: str) -> list[str]:
    """What `*` in `array` stands for in those of the names that have its form."""
    matches = [re.fullmatch(re.escape(array).replace(r"\*", "(.+)"), name) for name in names]
    return [match[1] for match in matches if match]


class Parity:
    """`parity("folder/name")` loads one file of vectors; `parity.fill` is the filler of weights, `parity.checksum`
    and `parity.stats` what the vectors say of large tensors. `@pytest.mark.cases` runs a test for each of a file's
    cases, `parity.cases(vectors, "name_*")` lists them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        spec = importlib.util.spec_from_file_location("parity_fill", root / "fill.py")
        assert spec is not None
        assert spec.loader is not None
        self.fill: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)

    def __call__(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.root / f"{name}.npz", allow_pickle=False) as vectors:
            return dict(vectors)

    @staticmethod
    def cases(vectors: dict[str, np.ndarray], array: str) -> list[str]:
        """What `*` in `array` stands for in the names of the vectors; there must be some."""
        found = matching(vectors, array)
        assert found, f"the vectors have no {array}"
        return found

    @staticmethod
    def checksum(tensor: Tensor) -> np.ndarray:
        """[sum, L2 norm, first 8 values or NaN], as the vectors have it."""
        values = tensor.detach().double().contiguous().flatten().numpy()
        first = np.full(8, np.nan)
        first[: min(8, values.size)] = values[:8]
        return np.concatenate([[values.sum(), np.sqrt((values**2).sum())], first])

    @staticmethod
    def stats(tensor: Tensor, head: int = 0) -> np.ndarray:
        """[mean, population standard deviation, largest absolute value, first `head` values]."""
        values = tensor.detach().double().contiguous().flatten().numpy()
        return np.concatenate([[values.mean(), values.std(), np.abs(values).max()], values[:head]])


@pytest.fixture(scope="session")
def parity() -> Parity:
    if not VECTORS.is_dir():
        pytest.skip(f"reference vectors not found: {VECTORS} is missing")
    return Parity(VECTORS)
