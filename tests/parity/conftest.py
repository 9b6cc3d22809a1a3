"""Access to the reference vectors, which live outside the repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"


class Parity:
    """`parity("folder/name")` loads one file of vectors; `parity.fill` is the filler of weights, `parity.checksum`
    and `parity.stats` what the vectors say of large tensors."""

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
    root = SHARED / "parity"
    if not root.is_dir():
        pytest.skip(f"reference vectors not found: {root} is missing")
    return Parity(root)
