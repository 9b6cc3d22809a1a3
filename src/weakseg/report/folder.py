"""A run as its files tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from weakseg.data.dataset import Sample
from weakseg.errors import WeaksegError
from weakseg.files import read_json, read_json_lines
from weakseg.labels import Classes
from weakseg.pipeline.recipe import stage_kinds
from weakseg.pipeline.run import DATA_NAME, finished, recipe_of
from weakseg.pipeline.stage import Stage

PART_TITLES = {"train": "Training images", "score": "Weakly labelled images", "val": "Validation images"}


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
        recipe = recipe_of(root)
        log = read_json_lines(root / "log.jsonl")
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

    @cached_property
    def kinds(self) -> dict[str, type[Stage]]:
        """The classes of the finished stages, without those of an old run whose kind is no longer known."""
        known = stage_kinds()
        kinds = {name: known.get(self.stages[name]["kind"]) for name in self.manifests}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def leaving(self, artifact: str) -> list[str]:
        """The finished stages that leave an artifact such as "maps"."""
        return [name for name, kind in self.kinds.items() if kind.leaves == artifact]

    @cached_property
    def scores(self) -> list[Mapping[str, Any]]:
        """The rows of scores of all finished `evaluate` stages."""
        return [row for name in self.of_kind("evaluate") for row in read_json(self.root / name / "scores.json")["rows"]]

    def image_iou(self, title: str, part: str) -> Mapping[str, float | None]:
        """Name of an image → IoU, of the row of scores with this title on a part; empty if that was not measured."""
        rows = (row for row in self.scores if (row["title"], row["split"]) == (title, part))
        return next((row["image_iou"] for row in rows if "image_iou" in row), {})

    def titles(self, role: str) -> dict[str, str]:
        """Stage → title, for what the recipe's `evaluate` stages call `role` (curves, masks or segmenters)."""
        evaluations = [stage for stage in self.stages.values() if stage["kind"] == "evaluate"]
        return {source: title for stage in evaluations for title, source in stage[role].items()}

    @property
    def measured(self) -> bool:
        """Whether weakly labelled images have ground truth to measure against."""
        return bool(self.data["images"]["score"])

    def open_data(self) -> tuple[Classes, dict[str, dict[str, Sample]]]:
        """The classes, and the samples of every part of the run by name. Raises `WeaksegError` if the data are not what
        they were."""
        return self._opened

    @cached_property
    def _opened(self) -> tuple[Classes, dict[str, dict[str, Sample]]]:
        from weakseg.data.opening import open_dataset
        from weakseg.data.working_size import at_working_size

        dataset = open_dataset(Path(self.data["root"]), self.data["format"])
        if list(dataset.classes.names) != self.data["classes"]:
            raise WeaksegError(f"{dataset.root} has other classes than when the run was made.")
        parts = {}
        for part, names in self.data["names"].items():
            samples = dataset.split(self.data["splits"][part]) if names else ()
            known = {sample.name: sample for sample in at_working_size(samples, self.data.get("long_side"))}
            parts[part] = {name: known[name] for name in names if name in known}
            if len(parts[part]) < len(names):
                raise WeaksegError(f"{dataset.root} lacks {len(names) - len(parts[part])} images of the run.")
        return dataset.classes, parts

    def status(self) -> str:
        """A sentence on what is missing; empty for a finished run."""
        if not self.unfinished:
            return ""
        again = f" ({', '.join(self.outdated)}: made with earlier settings)" if self.outdated else ""
        return f"The run is not finished; missing: {', '.join(self.unfinished)}{again}."
