"""Comparisons: several recipes, each with several refiners and seeds, on one data set.

A comparison is a folder with an ordinary run in `RECIPE[+REFINER]/seed-N` for each of them. What runs have in common is
done once: a stage that another run of the folder has finished with the same key is taken over from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weakseg import parallel
from weakseg.data.dataset import Dataset
from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe import Recipe, change_of, load_recipe
from weakseg.pipeline.refining import refining_stages, with_refinement, without_refinement
from weakseg.pipeline.run import RECIPE_NAME, clear_temporaries, finished, locked, parts, run
from weakseg.runtime import start

LOCK_NAME = "compare.lock"
NONE = "none"
"""The refiner that stands for no refinement."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: a recipe with its seed, in its folder."""

    recipe: Recipe
    folder: Path

    @property
    def title(self) -> str:
        """What the progress calls it."""
        return f"{self.recipe.name}, seed {self.recipe.seed}"


def plan(
    recipes: Sequence[str], out: Path, seeds: Sequence[int], refiners: Sequence[str] = (), changes: Sequence[str] = ()
) -> list[Cell]:
    """All runs of a comparison, seed by seed, so that all recipes can be compared as early as may be.

    `refiners` are recipes whose refinement each recipe is given, or "none"; with none at all, recipes stay as they
    are. `changes` are settings such as `cam.train.epochs=2` for every recipe that has the stage `cam`, or
    `seam:cam.train.epochs=2` for one. Raises `WeaksegError` for whatever cannot be compared.
    """
    _distinct("recipe", recipes)
    _distinct("refiner", refiners)
    _distinct("seed", [str(seed) for seed in seeds])
    plain, refining = _loaded(recipes, [name for name in refiners if name != NONE], changes)
    compared: list[Recipe] = []
    for recipe in plain:
        for refiner in refiners:
            compared.append(
                without_refinement(recipe) if refiner == NONE else with_refinement(recipe, refining[refiner])
            )
        if not refiners:
            compared.append(recipe)
    _distinct("recipe of the name", [recipe.name for recipe in compared])
    for recipe in compared:
        if not any(stage.kind == "evaluate" for stage in recipe.stages.values()):
            raise WeaksegError(f'The recipe "{recipe.name}" measures nothing: it has no stage of kind evaluate.')
        if Path(recipe.name).name != recipe.name or recipe.name.startswith("."):
            raise WeaksegError(f'The name of the recipe "{recipe.name}" cannot be the name of a folder; change it.')
    return [
        Cell(replace(recipe, seed=seed), out / recipe.name / f"seed-{seed}") for seed in seeds for recipe in compared
    ]


def carry_out(
    cells: Sequence[Cell],
    dataset: Dataset,
    out: Path,
    *,
    announce: Callable[[str], None] = print,
    after: Callable[[Cell], None] = lambda cell: None,
) -> dict[Path, str]:
    """Carry out the runs of a comparison, one after the other; what is finished is skipped.

    `after` is called with every finished run. Returns folder → message of the runs that failed by a mistake of the
    user; the others go on. With several processes, which cannot know of each other's mistakes, the first is raised.
    """
    for cell in cells:
        _, score, val = parts(dataset, cell.recipe)
        if not score and not val:
            raise WeaksegError(
                f"{dataset.root} has no masks to measure on, so there is nothing to compare. "
                "Add masks for some images, or name a split that has them with --set data.score=… or data.val=…"
            )
    start(cells[0].recipe.runtime)
    failed: dict[Path, str] = {}
    with locked(out, LOCK_NAME, "comparison"):
        if parallel.rank() == 0:
            clear_temporaries(out.glob)
        for place, cell in enumerate(cells):
            if parallel.rank() == 0:
                announce(f"[{place + 1}/{len(cells)}] {cell.title}{_time_left(cells[:place], cells[place:])}")
            try:
                run(
                    cell.recipe,
                    dataset,
                    cell.folder,
                    lambda line: announce(f"  {line}"),
                    reuse=_others(out, cell.folder),
                )
                after(cell)
            except WeaksegError as error:
                if parallel.world_size() > 1:
                    raise
                announce(f"  failed: {error}")
                failed[cell.folder] = str(error)
    return failed


def _distinct(what: str, names: Sequence[str]) -> None:
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise WeaksegError(f"The {what} {twice[0]} is there twice; a comparison needs different ones.")


def _loaded(
    recipes: Sequence[str], refiners: Sequence[str], changes: Sequence[str]
) -> tuple[list[Recipe], dict[str, Recipe]]:
    """The recipes, and the refiners by name, each with the changes that are meant for it."""
    for change in changes:
        if change_of(change)[1] == "seed":
            raise WeaksegError(f"--set {change}: give the seeds of a comparison with --seeds.")
    used: set[str] = set()

    def load(name: str, refining: bool) -> Recipe:
        recipe = load_recipe(name)
        known = {*refining_stages(recipe)} if refining else {*recipe.stages, "data", "runtime", "rounds"}
        fitting = []
        for change in changes:
            scope, key, setting = change_of(change)
            if key in known and scope in ("", name, recipe.name):
                fitting.append(setting)
                used.add(change)
        return load_recipe(name, fitting)

    plain = [load(name, refining=False) for name in recipes]
    refining = {name: load(name, refining=True) for name in refiners}
    for change in changes:
        if change not in used:
            raise WeaksegError(
                f"--set {change}: no recipe of this comparison has such a stage or setting. The stages are: "
                + "; ".join(f"{recipe.name}: {', '.join(recipe.stages)}" for recipe in (*plain, *refining.values()))
                + "."
            )
    return plain, refining


def _others(out: Path, folder: Path) -> list[Path]:
    """All other runs in the folder of a comparison."""
    return [path.parent for path in sorted(out.glob(f"*/seed-*/{RECIPE_NAME}")) if path.parent != folder]


def own_seconds(cell: Cell) -> float:
    """The time that a run took for the stages that it did not take over from others."""
    manifests = (finished(cell.folder / name) for name in cell.recipe.stages)
    return sum(m["seconds"] for m in manifests if m is not None and "reused_from" not in m)


def _time_left(done: Sequence[Cell], waiting: Sequence[Cell]) -> str:
    """How long the runs that wait will take if they take as long as those of the same recipe, or else as all."""
    known = [(cell.recipe.name, own_seconds(cell)) for cell in done]
    if not known:
        return ""

    def expected(cell: Cell) -> float:
        same = [seconds for name, seconds in known if name == cell.recipe.name]
        times = same or [seconds for _, seconds in known]
        return sum(times) / len(times)

    left = sum(max(0.0, expected(cell) - own_seconds(cell)) for cell in waiting)
    return f" (about {max(1, round(left / 60))} min left)"
