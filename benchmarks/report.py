"""Run all benchmarks that need no GPU and write `docs/benchmarks.md`.

    python benchmarks/report.py [--out docs/benchmarks.md] [--only NAME …]

Every other script in this folder that publishes a table (see measure.py) is run with its default arguments, one after
the other, each in a process of its own. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

import measure
from measure import Row, Table
from weakseg.files import write_text

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "numba", "pillow", "pydensecrf2")


def scripts() -> list[Path]:
    return [path for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("measure", "report")]


def table_of(script: Path) -> tuple[Table, float]:
    """The table that a script publishes, and how many seconds it took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        subprocess.run([sys.executable, script], check=True, env={**os.environ, measure.TABLE_FILE: str(file)})
        if not file.exists():
            raise SystemExit(f"{script} has published no table: let it end with measure.publish.")
        content = json.loads(file.read_text())
    return Table(**{**content, "rows": [Row(**row) for row in content["rows"]]}), time.perf_counter() - start


def markdown(script: Path, table: Table, taken: float) -> str:
    lines = [
        f"## {table.title}",
        f"`python benchmarks/{script.name}` ({taken:.0f} s). {table.conditions}.",
        "| | ours | peer | times better | target | agreement |\n|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        target = "" if row.target is None else f"{row.target:g}: {'met' if measure.met(row) else '**missed**'}"
        cells = (row.line, row.ours, row.peer, measure.spread(row.ratios), target, row.agreement)
        lines[-1] += f"\n| {' | '.join(cells)} |"
    if table.cuda:
        lines.append("On CUDA: not measured: no CUDA device.")
    for row in table.rows:
        if not measure.met(row):
            lines.append(f"{row.line}: {row.floor or 'what bounds it is not known yet'}.")
    return "\n\n".join(lines)


def header() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    system = f"{measure.machine()}, {platform.system()}, Python {platform.python_version()}, {versions}"
    threads, product, copy = torch.get_num_threads(), measure.matrix_rate(), measure.copy_rate()
    return (
        "# Speed\n\n"
        "Written by `make bench`, which runs every script in `benchmarks/`; they say what is compared. Ours and the "
        "peer take turns in one process. A ratio is the peer's time over ours in the same turn: the median (least "
        "… largest). Results of both sides were compared first.\n\n"
        f"{time.strftime('%Y-%m-%d')}: {system}. For scale: with {threads} threads, a product of float32 matrices runs "
        f"at {product:.0f} GFLOP/s here, and a copy reads and writes {copy:.0f} GB/s."
    )


def summary(tables: list[Table]) -> str:
    lines = ["| claim | times better | target | |", "|---|---|---|---|"]
    for row in (row for table in tables for row in table.rows if row.target is not None):
        missed = "" if measure.met(row) else "missed"
        lines.append(f"| {row.line} | {statistics.median(row.ratios):.3g} | {row.target:g} | {missed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "docs" / "benchmarks.md")
    parser.add_argument("--only", nargs="*", help="names of scripts, without .py")
    arguments = parser.parse_args()
    chosen = [script for script in scripts() if not arguments.only or script.stem in arguments.only]
    head = header()  # before anything is warm
    measured = [(script, *table_of(script)) for script in chosen]
    parts = [head, summary([table for _, table, _ in measured]), *(markdown(*one) for one in measured)]
    write_text(arguments.out, "\n\n".join(parts) + "\n")
    print(f"\n{arguments.out} is written; all took {sum(taken for *_, taken in measured) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
