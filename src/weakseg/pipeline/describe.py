"""Recipes that explain themselves: each setting with its meaning as a comment, and a JSON schema for editors."""

from __future__ import annotations

import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from weakseg.methods.base import KINDS, Method, methods
from weakseg.pipeline.applying import Applying
from weakseg.pipeline.learning import Learning
from weakseg.pipeline.recipe import Recipe, stage_kinds
from weakseg.pipeline.recipe_files import Head, Rounds
from weakseg.pipeline.stages.maps import Maps
from weakseg.settings import Settings, settings_in

INDENT = "  "
COMMENT_COLUMN, WIDTH = 44, 110
LIMITS = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}

Schema = dict[str, Any]

# Comments -------------------------------------------------------------------------------------------------------------


def explained(recipe: Recipe) -> str:
    """The complete recipe as YAML; each setting is explained where it comes first. Reading it gives the same recipe."""
    told: set[tuple[type, str]] = set()
    lines = [*_group(Head, recipe.head(), {}, "", told), "stages:"]
    for name, stage in recipe.stages.items():
        lines.append(f"{INDENT}{_yaml(name)}:")
        lines += _group(type(stage), stage.model_dump(mode="json"), _by_method(stage), 2 * INDENT, told)
    return "\n".join(lines) + "\n"


def _by_method(stage: Settings) -> dict[str, type[Settings]]:
    """The classes of the settings that the stage's method says: key → class."""
    if isinstance(stage, Learning):
        method = stage.method_class()
        return {"model": method.Settings, "options": method.Options}
    return {"options": stage.options_class()} if isinstance(stage, Applying) else {}


def _group(
    cls: type[Settings],
    values: Mapping[str, Any],
    inside: Mapping[str, type[Settings]],
    indent: str,
    told: set[tuple[type, str]],
) -> Iterator[str]:
    """The lines of a group of settings."""
    for key, value in values.items():
        field, comment = cls.model_fields[key], ""
        owner = next(base for base in reversed(cls.__mro__) if key in getattr(base, "model_fields", {}))
        if (owner, key) not in told:
            told.add((owner, key))
            comment = _meaning(field)
        nested = inside.get(key) or settings_in(field.annotation)
        if nested is not None and isinstance(value, Mapping) and value:
            yield from _with_comment(indent, f"{key}:", comment)
            yield from _group(nested, value, {}, indent + INDENT, told)
        else:
            yield from _with_comment(indent, f"{key}: {_yaml(value)}", comment)


def _with_comment(indent: str, setting: str, comment: str) -> Iterator[str]:
    """A setting with its comment beside it or, where that is too long, above it."""
    line = f"{indent}{setting}"
    beside = f"{line:{COMMENT_COLUMN}} # {comment}" if comment else line
    if len(beside) <= WIDTH:
        yield beside
        return
    if comment:
        yield from textwrap.wrap(comment, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    yield line


def _yaml(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo) -> str:
    """What a setting is, the values that it may have, and the bounds of a number."""
    words = [field.description or ""]
    choices = list(dict.fromkeys(_choices(field.annotation)))
    if len(choices) > 1:
        words.append(f"one of {', '.join(map(str, choices))}")
    bounds = [f"{sign} {getattr(mark, name)}" for mark in _marks(field) for kind, (name, sign) in LIMITS.items()
              if isinstance(mark, kind)]  # fmt: skip
    if bounds:
        words.append(" and ".join(bounds))
    return "; ".join(filter(None, words))


def _marks(field: FieldInfo) -> Iterator[Any]:
    """What bounds a number: of the setting itself, or of one of its kinds (`float | None`)."""
    yield from field.metadata
    for option in typing.get_args(field.annotation):
        if typing.get_origin(option) is typing.Annotated:
            for mark in typing.get_args(option)[1:]:
                yield from mark.metadata if isinstance(mark, FieldInfo) else [mark]


def _choices(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        options = typing.get_args(annotation)
        if all(option is types.NoneType or typing.get_origin(option) is Literal for option in options):
            for option in options:
                yield from ["null"] if option is types.NoneType else _choices(option)


# Schema ---------------------------------------------------------------------------------------------------------------


def recipe_schema() -> Schema:
    """A JSON schema (draft 2020-12) of recipe files. Whatever `extends` or `like` may supply need not be there."""
    parts: dict[str, Schema] = {}
    kinds = stage_kinds()
    for kind, stage in kinds.items():
        parts[f"stage {kind}"] = _stage_schema(stage, parts)
    known = sorted({key for kind in kinds for key in parts[f"stage {kind}"]["properties"]})
    parts["stage"] = {
        "type": ["object", "null"],
        "propertyNames": {"enum": known},
        "properties": {"kind": {"enum": sorted(kinds)}, "like": {"type": "string"}},
        "allOf": [_when("kind", kind, {"$ref": f"#/$defs/{_pointer(f'stage {kind}')}"}) for kind in kinds],
    }
    head = _schema(Head, parts)
    stages = {"type": "object", "additionalProperties": {"$ref": "#/$defs/stage"}}
    extends = {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "description": "the recipe to begin with, by name or file, or several, each laid over those before it",
    }
    more = {"extends": extends, "stages": stages}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "weakseg recipe",
        **head,
        "properties": {**head["properties"], **more, "rounds": _schema(Rounds, parts)},
        "$defs": parts,
    }


def _stage_schema(stage: type[Any], parts: dict[str, Schema]) -> Schema:
    schema = _schema(stage, parts)
    schema["properties"]["like"] = {"type": "string", "description": "an earlier stage to begin with"}
    of_kind = KINDS[stage.role] if issubclass(stage, Applying) else getattr(stage, "method_kind", None)
    if issubclass(stage, Maps):
        schema["properties"]["options"] = {"type": ["object", "null"]}
    if of_kind is not None:
        schema["allOf"] = [
            _when("method", name, {"properties": _method_schemas(stage, method, parts)})
            for name, method in methods(cast(type[Method], of_kind)).items()
            if hasattr(method, _options_name(stage))
        ]
    return schema


def _options_name(stage: type[Any]) -> str:
    """How methods call the options of this kind of stage."""
    return stage.options_name if issubclass(stage, Applying) else "Options"


def _method_schemas(stage: type[Any], method: type[Method], parts: dict[str, Schema]) -> Schema:
    found = {"options": _schema(getattr(method, _options_name(stage)), parts)}
    return {**found, "model": _schema(method.Settings, parts)} if issubclass(stage, Learning) else found


def _schema(cls: type[Settings], parts: dict[str, Schema]) -> Schema:
    """The schema of a group of settings; the groups inside of it become parts of the whole."""
    schema = cls.model_json_schema(ref_template="#/$defs/{model}")
    for name, inner in schema.pop("$defs", {}).items():
        parts[name] = _relaxed(inner)
    return _relaxed(schema)


def _relaxed(schema: Schema) -> Schema:
    """Nothing is required, and null takes a group or an entry of a list of stages away."""
    schema = {key: value for key, value in schema.items() if key not in ("required", "default")}
    if "properties" in schema:
        schema["properties"] = {key: _nullable(value) for key, value in schema["properties"].items()}
        schema["type"] = ["object", "null"]
    return schema


def _nullable(value: Schema) -> Schema:
    if "$ref" in value:
        reference = {"$ref": value["$ref"]}
        return {**{k: v for k, v in value.items() if k != "$ref"}, "anyOf": [reference, {"type": "null"}]}
    if value.get("type") == "object":
        entries = value.get("additionalProperties", True)
        if isinstance(entries, dict) and entries.get("type") == "string":
            entries = {"type": ["string", "null"]}
        return {**value, "type": ["object", "null"], "additionalProperties": entries}
    return value


def _when(key: str, value: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}


def _pointer(name: str) -> str:
    return name.replace(" ", "%20")
