"""Recipes: the stages of one paper with their numbers, as typed settings.

A recipe is a YAML file: `name`, `about`, `seed`, `data`, `runtime` and `stages`, an ordered list of named groups of
settings whose `kind` says which stage they belong to. `extends: other` begins with another recipe and changes it:
mappings are merged, other values replaced, and null takes a whole mapping (a stage, say) away. A new stage comes
before the one that the recipe names next, if that is known, and otherwise at the end.

`like: other` inside of a stage does the same with another stage of the recipe: a second round of a method names only
what it reads instead. Whatever changes the other stage changes this one, too.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from weakseg.errors import WeaksegError
from weakseg.pipeline.stage import Stage
from weakseg.settings import Settings, validate
from weakseg.training import RuntimeSettings


class DataSettings(Settings):
    """Which images of the data set play which part."""

    train: str = Field(default="train", description="the split to learn from; its weak labels are used")
    images_per_class: int | None = Field(
        default=None, gt=0, description="a balanced part of it: at most so many images of a class"
    )
    score: str | None = Field(
        default="auto",
        description="the split with masks that activation maps and pseudo-masks are measured on; its weak labels are "
        "used. auto: the training split where it has masks",
    )
    val: str | None = Field(
        default="auto", description="the split the segmenter is measured on; auto: val, if there is one"
    )


class _Head(Settings):
    """All of a recipe but its stages."""

    name: str
    about: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    data: DataSettings = DataSettings()
    runtime: RuntimeSettings = RuntimeSettings()


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. Every stage reads only stages that come before it."""

    name: str
    about: str
    seed: int
    data: DataSettings
    runtime: RuntimeSettings
    stages: Mapping[str, Stage]

    def as_yaml(self) -> str:
        """The complete recipe, defaults included; reading it gives the same recipe again."""
        values = {
            "name": self.name,
            "about": self.about,
            "seed": self.seed,
            "data": self.data.model_dump(mode="json"),
            "runtime": self.runtime.model_dump(mode="json"),
            "stages": {name: stage.model_dump(mode="json") for name, stage in self.stages.items()},
        }
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with weakseg: name → what it is about."""
    names = sorted(path.name.removesuffix(".yaml") for path in _shipped().iterdir() if path.name.endswith(".yaml"))
    return {name: str(_read(name)["about"]).strip() for name in names}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or any by the path of its YAML file, changed by `overrides` such as
    `cam.train.epochs=2` (the value is YAML).

    Raises `WeaksegError` that names every wrong key and the nearest valid one.
    """
    values = _read(name)
    for override in overrides:
        _apply(values, override)
    if not isinstance(values.get("stages"), dict) or not values["stages"]:
        raise WeaksegError(f"Recipe {name} has no stages.")
    if alike := _without_like(values["stages"]):
        # Once more, since a value that was put in the place of a whole mapping has been merged with the other stage's.
        for override in overrides:
            if change_of(override)[1] in alike:
                _apply(values, override)
    stages = values.pop("stages")
    head = validate(_Head, values, "")
    typed: dict[str, Stage] = {}
    for stage_name, stage_values in stages.items():
        typed[stage_name] = _stage(stage_name, stage_values)
        _check_references(stage_name, typed)
    return Recipe(head.name, head.about, head.seed, head.data, head.runtime, typed)


def change_of(override: str) -> tuple[str, str, str]:
    """What `seam:cam.train.epochs=2` changes: the recipe ("" for any), the first key, and the change itself."""
    path, separator, _ = override.partition("=")
    scope, _, key = path.rpartition(":")
    if not separator or not key:
        raise WeaksegError(f'--set {override}: write it as key=value, such as "cam.train.epochs=2".')
    return scope, key.partition(".")[0], override.removeprefix(f"{scope}:") if scope else override


def stage_kinds() -> dict[str, type[Stage]]:
    """Every kind of stage: the classes that the modules of `pipeline.stages` name as `STAGE`."""
    import weakseg.pipeline.stages as package

    modules = (
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    )
    return {module.STAGE.model_fields["kind"].default: module.STAGE for module in modules}


def _stage(name: str, values: Any) -> Stage:
    if not isinstance(values, dict):
        raise WeaksegError(f"{name}: a stage is a group of settings, found {values!r}.")
    kinds = stage_kinds()
    kind = values.get("kind")
    if kind not in kinds:
        raise WeaksegError(f'{name}.kind: there is no stage of kind "{kind}". Known: {", ".join(sorted(kinds))}.')
    return validate(kinds[kind], values, name).checked(name)


def _check_references(name: str, stages: Mapping[str, Stage]) -> None:
    """Raise `WeaksegError` unless all that the stage reads comes before it and leaves what is wanted of it."""
    for key, source, artifact in stages[name].references():
        if source not in stages or source == name:
            raise WeaksegError(f'{name}.{key}: reads the stage "{source}", which does not come before it.')
        if stages[source].leaves != artifact:
            wanted = sorted(kind for kind, stage in stage_kinds().items() if stage.leaves == artifact)
            raise WeaksegError(
                f'{name}.{key}: the stage "{source}" is of kind {stages[source].kind}, expected {" or ".join(wanted)}.'
            )


def _without_like(stages: dict[str, Any]) -> list[str]:
    """Fill in the stages that are `like` another one, and return their names."""
    alike = []
    for name, values in stages.items():
        if isinstance(values, dict) and "like" in values:
            other = values.pop("like")
            if other not in list(stages)[: list(stages).index(name)] or not isinstance(stages[other], dict):
                raise WeaksegError(f'{name}.like: there is no stage "{other}" before it.')
            stages[name] = _merged(copy.deepcopy(stages[other]), values)
            alike.append(name)
    return alike


def _shipped() -> Any:
    return files("weakseg") / "recipes"


def _read(name: str) -> dict[str, Any]:
    """The raw values of a recipe, with those of the recipe it extends below them."""
    if name.endswith((".yaml", ".yml")):
        path: Any = Path(name)
        if not path.is_file():
            raise WeaksegError(f"There is no recipe file {name}.")
    else:
        path = _shipped() / f"{name}.yaml"
        if not path.is_file():
            known = sorted(item.name.removesuffix(".yaml") for item in _shipped().iterdir())
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean "{near[0]}"?' if near else f"There are: {', '.join(known)}."
            raise WeaksegError(f'There is no recipe "{name}". {hint} A file of your own must end in .yaml.')
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WeaksegError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise WeaksegError(f"{path} is not a recipe: its top level must be a mapping.")
    base = values.pop("extends", None)
    return _merged(_read(base), values) if base else values


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above` laid over it, mapping by mapping; null over a mapping takes it away."""
    order = list(below)
    following: str | None = None
    for key in reversed(list(above)):
        if key not in below:
            order.insert(len(order) if following is None else order.index(following), key)
        following = key
    merged = {key: below.get(key) for key in order}
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and value is None:
            del merged[key]
        else:
            merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise WeaksegError(f'--set {override}: write it as key=value, such as "cam.train.epochs=2".')
    keys = path.split(".")
    stages = values.get("stages", {})
    heads = [key for key in _Head.model_fields if key not in ("name", "about")]
    if keys[0] in stages:
        keys.insert(0, "stages")
    elif keys[0] not in heads:
        near = difflib.get_close_matches(keys[0], [*stages, *heads], n=1, cutoff=0.5)
        hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join([*stages, *heads])}."
        raise WeaksegError(f"--set {override}: there is no stage or setting {keys[0]!r}. {hint}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise WeaksegError(f"--set {override}: {text!r} is not a YAML value.") from None
    group = values
    for key in keys[:-1]:
        if not isinstance(group.get(key), dict):
            group[key] = {}
        group = group[key]
    group[keys[-1]] = value
