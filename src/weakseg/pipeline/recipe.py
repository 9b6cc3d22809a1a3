"""Recipes: the stages of one paper with their numbers, as typed settings.

A recipe is a YAML file: `name`, `about`, `seed`, `data`, `runtime` and `stages`, named groups of settings whose `kind`
says which stage they belong to. Stages are carried out in an order in which each comes after those that it reads.
`extends: other` begins with another recipe and changes it: mappings are merged, other values replaced, and null takes a
whole mapping (a stage, say) away. `extends: [one, other]` lays the changes of the second over the first; what both
extend is there once, below them.

`like: other` inside of a stage does the same with another stage of the recipe: whatever changes the other stage changes
this one, too. `rounds` repeat stages, each round reading the one before (`recipe_files.Rounds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from weakseg.errors import WeaksegError
from weakseg.pipeline.recipe_files import DataSettings, Head, change_of, read_recipe, rounds_of, shipped_recipes
from weakseg.runtime import RuntimeSettings
from weakseg.settings import validate

if TYPE_CHECKING:
    from weakseg.pipeline.stage import Stage

__all__ = [
    "DataSettings",
    "Recipe",
    "change_of",
    "load_recipe",
    "needed_for",
    "shipped_recipes",
    "stage_kinds",
    "with_weights",
]  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. Every stage reads only stages that come before it."""

    name: str
    about: str
    seed: int
    data: DataSettings
    runtime: RuntimeSettings
    stages: Mapping[str, Stage]

    def head(self) -> dict[str, Any]:
        """The values of all settings that belong to no stage, defaults included."""
        return {
            "name": self.name,
            "about": self.about,
            "seed": self.seed,
            "data": self.data.model_dump(mode="json"),
            "runtime": self.runtime.model_dump(mode="json"),
        }

    def as_yaml(self) -> str:
        """The complete recipe, defaults included; reading it gives the same recipe again."""
        stages = {name: stage.model_dump(mode="json") for name, stage in self.stages.items()}
        return yaml.safe_dump({**self.head(), "stages": stages}, sort_keys=False, allow_unicode=True)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or any by the path of its YAML file, changed by `overrides` such as
    `cam.train.epochs=2` (the value is YAML) or `segment=null`, which takes a stage away with the rows of its scores.

    Raises `WeaksegError` that names every wrong key and the nearest valid one.
    """
    values = read_recipe(name, overrides)
    rounds, raw = rounds_of(values), values.pop("stages")
    values.pop("rounds", None)
    head = validate(Head, values, "")
    removed = [stage_name for stage_name, stage_values in raw.items() if stage_values is None]
    stages = {
        stage_name: _stage(stage_name, stage_values).without(removed)
        for stage_name, stage_values in raw.items()
        if stage_values is not None
    }
    if rounds is not None:
        number_of = {rounds.name(n, stage): n for n in range(1, rounds.count + 1) for stage in rounds.members}
        for stage_name, stage in stages.items():
            number = number_of.get(stage_name)
            meaning = rounds.meaning(number) if number else {} if stage_name in rounds.stages else rounds.last()
            stages[stage_name] = stage.reading(meaning)
    for stage_name in stages:
        _check_references(stage_name, stages)
        if outer := [other for other in stages if stage_name.startswith(f"{other}/")]:
            raise WeaksegError(f'{stage_name}: its folder would lie in that of the stage "{outer[0]}"; rename one.')
    return Recipe(head.name, head.about, head.seed, head.data, head.runtime, _in_order(stages))


def needed_for(recipe: Recipe, last: str) -> set[str]:
    """A stage and all that it needs, by name."""
    if last not in recipe.stages:
        raise WeaksegError(f'The recipe "{recipe.name}" has no stage "{last}". It has: {", ".join(recipe.stages)}.')
    needed: set[str] = set()
    waiting = [last]
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += recipe.stages[name].inputs_of()
    return needed


def with_weights(recipe: Recipe, weights: str) -> Recipe:
    """The recipe with one file of weights for every backbone that does not start at random."""
    return replace(recipe, stages={name: stage.with_weights(weights) for name, stage in recipe.stages.items()})


def stage_kinds() -> dict[str, type[Stage]]:
    """Every kind of stage: the classes that the modules of `pipeline.stages` name as `STAGE`."""
    import importlib
    import pkgutil

    import weakseg.pipeline.stages as package

    modules = (
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    )
    return {module.STAGE.model_fields["kind"].default: module.STAGE for module in modules}


def _stage(name: Any, values: Any) -> Stage:
    if not isinstance(name, str):
        raise WeaksegError(f"The name of a stage is text, found {name!r} among the stages. Write it in quotes.")
    if not isinstance(values, dict):
        raise WeaksegError(f"{name}: a stage is a group of settings, found {values!r}.")
    if any(part.startswith(".") or not part.strip() for part in name.split("/")):
        raise WeaksegError(f'{name}: the name of a stage is the name of its folder, which cannot be "{name}".')
    kinds = stage_kinds()
    kind = values.get("kind")
    if kind not in kinds:
        raise WeaksegError(f'{name}.kind: there is no stage of kind "{kind}". Known: {", ".join(sorted(kinds))}.')
    return validate(kinds[kind], values, name).checked(name)


def _check_references(name: str, stages: Mapping[str, Stage]) -> None:
    """Raise `WeaksegError` unless all that the stage reads is there and leaves what is wanted of it."""
    for key, source, reads in stages[name].references():
        if source not in stages:
            raise WeaksegError(f'{name}.{key}: there is no stage "{source}". There are: {", ".join(stages)}.')
        fits = stages[source].leaves in reads.artifacts if reads.artifacts else stages[source].makes_arrays()
        if not fits:
            wanted = sorted(
                kind
                for kind, stage in stage_kinds().items()
                if (stage.leaves in reads.artifacts if reads.artifacts else stage.makes_arrays())
            )
            raise WeaksegError(
                f'{name}.{key}: the stage "{source}" is of kind {stages[source].kind}, expected {" or ".join(wanted)}.'
            )


def _in_order(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """The stages, each after those that it reads, and otherwise in the order in which they are given."""
    ordered: dict[str, Stage] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join([*path[path.index(name) :], name])
            raise WeaksegError(f"{name}: the stages read each other in a circle: {circle}.")
        if name not in ordered:
            for source in stages[name].inputs_of():
                add(source, (*path, name))
            ordered[name] = stages[name]

    for name in stages:
        add(name, ())
    return ordered
