"""What a run says in numbers: which stages are finished, the scores, and tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from weakseg.data.cooccurrence import share_with_other
from weakseg.errors import WeaksegError
from weakseg.files import read_json
from weakseg.pipeline.run import DATA_NAME, RECIPE_NAME, finished

ABSENT = "–"


@dataclass(frozen=True)
class RunFolder:
    """A run as its files tell it. They are read as plain values, not as today's settings, so that the reports of old
    runs can still be made.

    `recipe` and `data` are the contents of `recipe.yaml` and `data.json`, `manifests` those of the stages that are
    finished and up to date, `outdated` the stages that the run has yet to do again, and `log` its events.
    """

    root: Path
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    manifests: Mapping[str, Mapping[str, Any]]
    outdated: Sequence[str]
    log: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, root: Path) -> RunFolder:
        """Raises `WeaksegError` for a folder that is no run."""
        recipe = _read_recipe(root / RECIPE_NAME)
        log = read_lines(root / "log.jsonl")
        found = {name: manifest for name in recipe["stages"] if (manifest := finished(root / name)) is not None}
        # What the run wants; an interrupted one may not have come to all stages that a change of settings concerns.
        begun = [event for event in log if event["event"] == "run"]
        wanted = begun[-1].get("keys", {}) if begun else {}
        outdated = [name for name, manifest in found.items() if manifest["key"] != wanted.get(name, manifest["key"])]
        manifests = {name: manifest for name, manifest in found.items() if name not in outdated}
        return cls(root, recipe, read_json(root / DATA_NAME), manifests, outdated, log)

    @property
    def stages(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings of all stages of the recipe, in order."""
        stages: Mapping[str, Mapping[str, Any]] = self.recipe["stages"]
        return stages

    @property
    def unfinished(self) -> list[str]:
        """The stages that are missing or outdated."""
        return [name for name in self.stages if name not in self.manifests]

    def of_kind(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """The finished stages of one kind, with their settings."""
        return {name: self.stages[name] for name in self.manifests if self.stages[name]["kind"] == kind}

    def scores(self) -> list[Mapping[str, Any]]:
        """The rows of scores of all finished `evaluate` stages."""
        return [row for name in self.of_kind("evaluate") for row in read_json(self.root / name / "scores.json")["rows"]]

    def titles(self, role: str) -> dict[str, str]:
        """Stage → title, for what the recipe's `evaluate` stages call `role` (curves, masks or segmenters)."""
        evaluations = [stage for stage in self.stages.values() if stage["kind"] == "evaluate"]
        return {source: title for stage in evaluations for title, source in stage[role].items()}

    def status(self) -> str:
        """A sentence on what is missing; empty for a finished run."""
        if not self.unfinished:
            return ""
        again = f" ({', '.join(self.outdated)}: made with earlier settings)" if self.outdated else ""
        return f"The run is not finished; missing: {', '.join(self.unfinished)}{again}."


def _read_recipe(path: Path) -> Mapping[str, Any]:
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeaksegError(f"{path.parent} is not the folder of a run: it has no {RECIPE_NAME}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeaksegError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), dict):
        raise WeaksegError(f"{path} is not the recipe of a run: it has no stages.")
    return recipe


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log with one JSON object per line; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except json.JSONDecodeError as error:
        raise WeaksegError(f"{path} is damaged: {error.msg} in {error.doc[:60]!r}. Delete it to go without.") from None


def scores_table(run: Path) -> str:
    """The scores of a run in plain text, or a sentence on why there are none."""
    folder = RunFolder.read(run)
    rows = folder.scores()
    if not rows:
        return folder.status() or "The run has no scores, since its data have no ground truth to measure against."
    return "\n".join(filter(None, [text_table(*score_cells(rows)), folder.status()]))


def score_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of the table of scores, in percent.

    Means over all classes (absent ones count 0) and over the classes that occur are both there if they differ. How much
    activation falls on contexts is there if it was measured.
    """
    means = {"mIoU %": "mean_iou"}
    if any(percent(row["mean_iou"]) != percent(row["mean_iou_present"]) for row in rows):
        means = {"mIoU %, all classes": "mean_iou", "mIoU %, classes that occur": "mean_iou_present"}
    contexts = {"on context %": "share"} if any("context" in row for row in rows) else {}
    header = ["what", "split", *means, "boundary F %", "threshold", *contexts, "images"]
    cells = [
        [
            row["title"],
            row["split"],
            *(percent(row[key]) for key in means.values()),
            percent(row.get("boundary_f")),
            f"{row['threshold']:.2f}" if "threshold" in row else ABSENT,
            *(percent(row.get("context", {}).get(key)) for key in contexts.values()),
            str(row["images"]),
        ]
        for row in rows
    ]
    return header, cells


def companion_cells(
    names: Sequence[str], with_both: npt.NDArray[np.int64], most: int = 3
) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of a table of classes: the `most` other classes that are most often in images with
    them, in percent of these, and how many images there are. `with_both` is that of `data.cooccurrence`."""
    cells = []
    for place, (name, shares) in enumerate(zip(names, share_with_other(with_both), strict=True)):
        others = [k for k in np.argsort(-with_both[place], kind="stable") if k != place and with_both[place, k]]
        seen = ", ".join(f"{names[k]} {100 * shares[k]:.0f} %" for k in others[:most])
        cells.append([name, seen or ABSENT, str(with_both[place, place])])
    return ["class", "most often with", "images"], cells


def percent(score: float | None) -> str:
    """A fraction of 1 as percent with one decimal; a dash for a score that is not defined."""
    return ABSENT if score is None else f"{100 * score:.1f}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Columns wide enough for everything, the first `texts` aligned to the left and the others to the right."""
    from rich.cells import cell_len  # Chinese characters are two columns wide

    lines = [header, *rows]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        cells = zip(line, gaps, strict=True)
        return "  ".join(cell + gap if place < texts else gap + cell for place, (cell, gap) in enumerate(cells))

    return "\n".join([aligned(header), "  ".join("─" * width for width in widths), *map(aligned, rows)])
