"""Run all benchmarks and write `docs/benchmarks.md`.

    python benchmarks/report.py [--out docs/benchmarks.md] [--only NAME …] [--smoke]

Every other script in this folder that publishes a table (see measure.py) is run with its default arguments, one after
the other, each in a process of its own; what this machine lacks, such as a CUDA device, is reported as not measured. A
script that fails is reported, too, and does not keep the others from running. Scripts that publish none need arguments,
such as a finished run, and are only named. Nothing else should run meanwhile. With --smoke all sizes are tiny: that
shows whether the scripts still work, and nothing else.
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
from dataclasses import dataclass
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


def publishes(script: Path) -> bool:
    return any(call in script.read_text() for call in ("measure.publish(", "measure.main("))


@dataclass
class Outcome:
    """What came of a script: its table, and how many seconds it took; no table if it failed."""

    script: Path
    table: Table | None
    seconds: float


def run(script: Path) -> Outcome:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        done = subprocess.run([sys.executable, script], env={**os.environ, measure.TABLE_FILE: str(file)})
        table = read_table(file) if done.returncode == 0 and file.exists() else None
    return Outcome(script, table, time.perf_counter() - start)


def read_table(file: Path) -> Table:
    content = json.loads(file.read_text())
    return Table(**{**content, "rows": [Row(**row) for row in content["rows"]]})


def markdown(outcome: Outcome) -> str:
    table, command = outcome.table, f"`python benchmarks/{outcome.script.name}`"
    if table is None:
        return f"## {outcome.script.stem}\n\n{command} **failed**."
    lines = [f"## {table.title}", f"{command} ({outcome.seconds:.0f} s). {table.conditions}."]
    if table.rows:
        lines.append("| | ours | peer | times better | target | agreement |\n|---|---|---|---|---|---|")
    for row in table.rows:
        target = "" if row.target is None else f"{row.target:g}: {'met' if measure.met(row) else '**missed**'}"
        cells = (row.line, row.ours, row.peer, measure.spread(row.ratios), target, row.agreement)
        lines[-1] += f"\n| {' | '.join(cells)} |"
    lines += filter(None, [table.remark])
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
        "Written by `make bench`, which runs the scripts in `benchmarks/`; they say what is compared. Ours and the "
        "peer take turns in one process. A ratio is the peer's time over ours in the same turn: the median (least "
        "… largest). Results of both sides were compared as well.\n\n"
        f"{time.strftime('%Y-%m-%d')}: {system}. For scale: with {threads} threads, a product of float32 matrices runs "
        f"at {product:.0f} GFLOP/s here, and a copy reads and writes {copy:.0f} GB/s."
    )


def summary(outcomes: list[Outcome]) -> str:
    lines = ["| claim | times better | target | |", "|---|---|---|---|"]
    tables = [outcome.table for outcome in outcomes if outcome.table]
    for row in (row for table in tables for row in table.rows if row.target is not None):
        missed = "" if measure.met(row) else "missed"
        lines.append(f"| {row.line} | {statistics.median(row.ratios):.3g} | {row.target:g} | {missed} |")
    return "\n".join(lines)


def others() -> str:
    """What is not measured by this script, because it needs arguments."""
    names = ", ".join(f"`benchmarks/{script.name}`" for script in scripts() if not publishes(script))
    return f"Not measured here, as they need the folder of a run or of a dataset: {names}." if names else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="by default docs/benchmarks.md, and nothing with --smoke")
    parser.add_argument("--only", nargs="*", help="names of scripts, without .py")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once each")
    arguments = parser.parse_args()
    if arguments.smoke:
        os.environ[measure.SMOKE] = "yes"
    out = arguments.out or (None if arguments.smoke else FOLDER.parent / "docs" / "benchmarks.md")
    chosen = [script for script in scripts() if publishes(script)]
    if arguments.only:
        chosen = [script for script in chosen if script.stem in arguments.only]
    head = header()  # before anything is warm
    outcomes = [run(script) for script in chosen]
    if out:
        parts = [head, summary(outcomes), *map(markdown, outcomes), *filter(None, [others()])]
        write_text(out, "\n\n".join(parts) + "\n")
        print(f"\n{out} is written.")
    print(f"All took {sum(outcome.seconds for outcome in outcomes) / 60:.1f} minutes.")
    failed = [outcome.script.name for outcome in outcomes if outcome.table is None]
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
