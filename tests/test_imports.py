"""The layers of docs/architecture.md, read from the sources: imports inside functions count, those for types do not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import weakseg

PACKAGE = Path(weakseg.__file__).parent


def imported_names(node: ast.AST) -> Iterator[str]:
    """All that is imported anywhere below a node, dotted."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported_names(child)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Each module of the package to those that it imports."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}

    def module_of(name: str) -> str | None:
        """The module that an imported name is, or is in."""
        while name not in paths and "." in name:
            name = name.rpartition(".")[0]
        return name if name in paths else None

    return {
        module: {found for name in imported_names(ast.parse(path.read_text())) if (found := module_of(name))}
        for module, path in paths.items()
    }


def test_imports_inside_functions_are_seen(imports: dict[str, set[str]]) -> None:
    assert "weakseg.ops.densecrf_torch" in imports["weakseg.ops.densecrf"]
    assert "weakseg.errors" in imports["weakseg.ops.densecrf"]


def test_there_is_no_import_circle(imports: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("room", ["ops", "models"])
def test_lower_rooms_know_nothing_of_the_upper_ones(imports: dict[str, set[str]], room: str) -> None:
    above = ("data", "methods", "training", "pipeline", "report", "cli")
    modules = [module for module in imports if module.startswith(f"weakseg.{room}.")]
    assert modules
    for module in modules:
        assert not [found for found in imports[module] if found.split(".")[1] in above], module
