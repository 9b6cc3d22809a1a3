"""The YAML of recipes: files that extend each other, changes from the command line, repeated stages.

Everything here works on plain values; `pipeline.recipe` makes typed settings of them and says what a recipe holds. No
network library is imported, so that a list of recipes or a typing error is answered at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from weakseg.errors import WeaksegError
from weakseg.files import read_text
from weakseg.runtime import RuntimeSettings
from weakseg.settings import Settings, did_you_mean, validate

Values = dict[str, Any]


class DataSettings(Settings):
    """Which images of the data set play which part."""

    train: str = Field(default="train", description="the split to learn from; its weak labels are used")
    images_per_class: int | None = Field(
        default=None, gt=0, description="a balanced part of it: at most so many images of a class; null: all"
    )
    difficult: bool = Field(
        default=True,
        description="learn from classes, too, all of whose objects in an image are marked as difficult (PASCAL VOC)",
    )
    score: str | None = Field(
        default="auto",
        description="the split with masks that activation maps and pseudo-masks are measured on; its weak labels are "
        "used. auto: the training split where it has masks; null: none",
    )
    long_side: Annotated[int, Field(gt=0)] | Literal["auto"] | None = Field(
        default="auto",
        description="pixels: the longer side that larger photographs are scaled down to, in training and in all that "
        "follows; masks have their full size again. auto: the largest of the localiser's training (resize_long); null: "
        "none",
    )
    val: str | None = Field(
        default="auto", description="the split the segmenter is measured on; auto: val, if there is one; null: none"
    )


class Head(Settings):
    """All of a recipe but its stages."""

    name: str = Field(description="what runs and comparisons call it")
    about: str = Field(description="one sentence for the list of recipes")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of everything random")
    data: DataSettings = Field(default=DataSettings(), description="which images play which part")
    runtime: RuntimeSettings = Field(default=RuntimeSettings(), description="where and how the run works")


class Rounds(Settings):
    """Stages that are carried out several times, each time reading the round before.

    The first round are the stages as they stand. Round r = 1 … `count` has a copy `round-r/NAME` of each; inside of it
    the names of these stages mean those of the same round, and `previous/NAME` is the stage of the round before. All
    other stages of the recipe may read `last/NAME`, the stage of the last round.
    """

    count: int = Field(ge=0, description="rounds after the first")
    stages: tuple[str, ...] = Field(min_length=1, description="the stages that are repeated")
    changes: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="name → settings that differ in the repeated stages, or a stage that only they have; "
        '"{round}" in a text is the number of the round',
    )

    @property
    def members(self) -> list[str]:
        """The stages of a repeated round: those that only it has, then those that are repeated."""
        return [*(name for name in self.changes if name not in self.stages), *self.stages]

    def name(self, number: int, stage: str) -> str:
        """What the stage of a round is called; the first round has number 0."""
        return f"round-{number}/{stage}" if number else stage

    def meaning(self, number: int) -> dict[str, str]:
        """What names of stages mean inside of a repeated round."""
        own = {stage: self.name(number, stage) for stage in self.members}
        before = {f"previous/{stage}": self.name(number - 1, stage) for stage in self.members}
        return {**own, **before}

    def last(self) -> dict[str, str]:
        """What names of stages of the last round mean outside of the rounds."""
        return {f"last/{stage}": self.name(self.count, stage) for stage in self.members}


def round_of(stage: str) -> int:
    """The round that a stage belongs to, by its name: "round-2/maps" to 2, "maps" to 0, the first."""
    found = re.match(r"round-(\d+)/", stage)
    return int(found[1]) if found else 0


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with weakseg: name → what it is about."""
    names = sorted(path.name.removesuffix(".yaml") for path in _shipped().iterdir() if path.name.endswith(".yaml"))
    return {name: str(read_recipe(name)["about"]).strip() for name in names}


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Values:
    """The values of a shipped recipe by name, or of any by the path of its YAML file, with those of the recipes that it
    extends below them, changed by `overrides` such as `cam.train.epochs=2` (the value is YAML).

    All stages are there in `stages`, repeated ones too, each a mapping, or None where one was taken away; `rounds`, if
    there are any, is left for what the names of stages mean. Raises `WeaksegError` for files, names and changes that
    make no sense.
    """
    values = _read(name)
    later = [override for override in overrides if not _apply(values, override)]
    if not isinstance(values.get("stages"), dict) or not values["stages"]:
        raise WeaksegError(f"Recipe {name} has no stages.")
    alike = _without_like(values["stages"])
    # Once more, since a value that was put in the place of a whole mapping has been merged with the other stage's.
    later += [override for override in overrides if change_of(override)[1] in alike]
    _repeat(values)
    for override in later:
        if not _apply(values, override):
            raise WeaksegError(_unknown(values, override))
    return values


def read_yaml(path: Any) -> Values:
    """The mapping in a YAML file."""
    text, _ = read_text(Path(str(path)))
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f"line {place.line + 1}, column {place.column + 1}: " if place else ""
        raise WeaksegError(f"{path} is not valid YAML: {where}{error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # odd characters, impossible dates
        raise WeaksegError(f"{path} is not valid YAML: it holds characters or values that no recipe has.") from None
    if not isinstance(values, dict):
        raise WeaksegError(f"{path} is not a recipe: its top level must be a mapping.")
    return values


def change_of(override: str) -> tuple[str, str, str]:
    """What `seam:cam.train.epochs=2` changes: the recipe ("" for any), the first key, and the change itself."""
    path, _ = _parted(override)
    scope, _, key = path.rpartition(":")
    return scope, key.partition(".")[0], override.removeprefix(f"{scope}:") if scope else override


def rounds_of(values: Mapping[str, Any]) -> Rounds | None:
    """The rounds that the values of a recipe ask for."""
    given = values.get("rounds")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise WeaksegError(f"rounds: a group of settings is expected, found {given!r}.")
    return validate(Rounds, given, "rounds")


def _shipped() -> Any:
    return files("weakseg") / "recipes"


def _read(name: str) -> Values:
    """The values of a recipe, laid over those of the recipes that it extends."""
    values: Values = {}
    layers: dict[str, Values] = {}
    _lay(name, layers)
    for layer in layers.values():
        values = _merged(values, layer)
    return values


def _lay(name: str, layers: dict[str, Values], above: tuple[str, ...] = ()) -> None:
    """Add what a recipe says itself to the `layers`, after those that it extends. One that several others extend is
    there once. Those `above` extend it."""
    if name in layers:
        return
    if name in above:
        raise WeaksegError(f"Recipe {name} extends itself: {' extends '.join([*above, name])}. Take one of them out.")
    values = read_yaml(_file_of(name))
    bases = values.pop("extends", None) or []
    if not isinstance(bases, str | list) or not all(isinstance(base, str) for base in bases):
        raise WeaksegError(f"Recipe {name}: extends is {bases!r}, expected a recipe's name or file, or a list of them.")
    for base in [bases] if isinstance(bases, str) else bases:
        _lay(base, layers, (*above, name))
    layers[name] = values


def _file_of(name: str) -> Any:
    if name.endswith((".yaml", ".yml")):
        path: Any = Path(name)
        if not path.is_file():
            raise WeaksegError(f"There is no recipe file {name}.")
    else:
        path = _shipped() / f"{name}.yaml"
        if not path.is_file():
            known = sorted(item.name.removesuffix(".yaml") for item in _shipped().iterdir())
            hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
            raise WeaksegError(f'There is no recipe "{name}".{hint} A file of your own must end in .yaml.')
    return path


def _merged(below: Values, above: Mapping[str, Any]) -> Values:
    """`below` with the keys of `above` laid over it, mapping by mapping; null over a mapping takes it away. A new key
    comes before the one that `above` names next, if that is known, and otherwise at the end."""
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


def _without_like(stages: Values) -> list[str]:
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


def _repeat(values: Values) -> None:
    """Add the stages of all repeated rounds, before the first stage that is not repeated and comes after them."""
    rounds, stages = rounds_of(values), values["stages"]
    if rounds is None:
        return
    for name in rounds.stages:
        if name not in stages:
            raise WeaksegError(f'rounds.stages: there is no stage "{name}".')
    repeated = dict(_repeated(rounds, stages))
    names = list(stages)
    place = max(names.index(name) for name in rounds.stages) + 1
    values["stages"] = {
        **{name: stages[name] for name in names[:place]},
        **repeated,
        **{name: stages[name] for name in names[place:]},
    }


def _repeated(rounds: Rounds, stages: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for number in range(1, rounds.count + 1):
        for name in rounds.members:
            base, changes = copy.deepcopy(stages.get(name, {})), _numbered(rounds.changes.get(name, {}), number)
            yield rounds.name(number, name), _merged(base, changes) if isinstance(base, dict) else base


def _numbered(values: Any, number: int) -> Any:
    """A copy of the changes of a round, with its number in their texts, keys among them."""
    if isinstance(values, dict):
        return {_numbered(key, number): _numbered(value, number) for key, value in values.items()}
    if isinstance(values, list):
        return [_numbered(value, number) for value in values]
    return values.replace("{round}", str(number)) if isinstance(values, str) else values


def _apply(values: Values, override: str) -> bool:
    """Change the values as `override` says; False where they have no such stage or setting (yet)."""
    path, text = _parted(override)
    keys = path.split(".")
    if keys[0] in (values.get("stages") or {}):
        keys.insert(0, "stages")
    elif keys[0] not in _heads():
        return False
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
    return True


def _parted(override: str) -> tuple[str, str]:
    """The key of a change, with the recipe that it is for, and the text of its value."""
    path, separator, text = override.partition("=")
    if not separator or not path.rpartition(":")[2]:
        raise WeaksegError(f'--set {override}: write it as key=value, such as "cam.train.epochs=2".')
    return path, text


def _heads() -> list[str]:
    return [*(key for key in Head.model_fields if key not in ("name", "about")), "rounds"]


def _unknown(values: Values, override: str) -> str:
    key, known = override.partition("=")[0].split(".")[0], [*values["stages"], *_heads()]
    hint = did_you_mean(key, known) or f" Known: {', '.join(known)}."
    return f"--set {override}: there is no stage or setting {key!r}.{hint}"
