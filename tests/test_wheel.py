"""What people install holds the files that are no code."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_recipes_styles_and_types(tmp_path: Path) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    source = tmp_path / "source"  # building leaves files behind
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*wheel, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("weakseg-*.whl")
    with zipfile.ZipFile(path) as archive:
        packed = {name for name in archive.namelist() if name.startswith("weakseg/")}
    files = (file for file in (ROOT / "src" / "weakseg").rglob("*") if file.is_file())
    assert packed == {f.relative_to(ROOT / "src").as_posix() for f in files if "__pycache__" not in f.parts}
