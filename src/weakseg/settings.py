"""Typed settings whose errors name the key and the nearest valid one."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from weakseg.errors import WeaksegError


class Settings(BaseModel):
    """Base of every group of settings: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def validate(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as typed settings; `where` (a dotted path such as `cam.train`) starts every name in the error.

    Raises `WeaksegError` that lists every wrong key at once.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise WeaksegError("\n".join(_explain(cls, fault, where) for fault in faults(error, values))) from None


def changed(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Valid values as JSON, without those that are the defaults of today."""
    return cls.model_validate(dict(values)).model_dump(mode="json", exclude_defaults=True)


def _explain(cls: type[Settings], fault: Fault, where: str) -> str:
    name = dotted((where, *fault.place) if where else fault.place)
    if fault.kind == "extra_forbidden":
        *parents, key = fault.place
        known = _keys_at(cls, parents)
        hint = did_you_mean(key, known) or f" Known: {', '.join(known) or 'none'}."
        return f"{name}: unknown setting.{hint}"
    if fault.kind == "missing":
        return f"{name}: this setting is missing."
    return f"{name}: {fault.text}."


# Faults in plain words


class Fault(NamedTuple):
    """One mistake: its `place` (keys and indices), pydantic's name for its `kind`, and a sentence without its end."""

    place: tuple[str | int, ...]
    kind: str
    text: str


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string_type": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "mapping": "keys with values",
    "greater_than_equal": "a number of {ge} or more",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of {le} or less",
    "less_than": "a number below {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}
"""By the beginning of pydantic's name for a kind of fault."""


def faults(error: ValidationError, values: object) -> list[Fault]:
    """What is wrong with `values`; of a value that may be of several kinds and is of none, one fault."""
    by_place: dict[tuple[str | int, ...], list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False):
        details = dict(item)
        by_place.setdefault(_place(details, values), []).append(details)
    # A list is "too short" without the elements that are wrong themselves.
    inside = {place[:-1] for place in by_place if place}
    return [
        Fault(place, found[0]["type"], _sentence(found))
        for place, found in by_place.items()
        if not (place in inside and found[0]["type"] == "too_short")
    ]


def _place(details: Mapping[str, Any], values: object) -> tuple[str | int, ...]:
    """Where in `values` a fault is. After that, pydantic names the kinds that it tried."""
    place: list[str | int] = []
    for part in details["loc"]:
        inside = values.keys() if isinstance(values, Mapping) else range(len(values) if _is_list(values) else 0)
        if part not in inside:
            if details["type"] == "missing":
                place.append(part)
            break
        values = values[part]  # type: ignore[index]
        place.append(part)
    return tuple(place)


def _is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def _sentence(found: Sequence[dict[str, Any]]) -> str:
    first = found[0]
    if first["type"] == "extra_forbidden":
        return "unknown key"
    if first["type"] == "missing":
        return "the key is missing"
    if first["type"] in ("value_error", "assertion_error"):
        text = first["msg"].removeprefix("Value error, ")
        return f"{text[:1].lower()}{text[1:]} (found {shown(first['input'])})"
    expected = " or ".join(dict.fromkeys(_expected(details) for details in found))
    return f"expected {expected} (found {shown(first['input'])})"


def _expected(details: Mapping[str, Any]) -> str:
    for kind, text in _EXPECTED.items():
        if details["type"].startswith(kind):
            bounds = details.get("ctx", {})
            whole = {name: int(b) if isinstance(b, float) and b.is_integer() else b for name, b in bounds.items()}
            return text.format_map(whole).replace("'", "")
    return f"something else: {details['msg'][:1].lower()}{details['msg'][1:]}"


def dotted(place: Iterable[str | int]) -> str:
    """A place as people write it: `boxes[0].class`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A space and a question that names the nearest of the `known` names, empty where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""


def shown(value: object, longest: int = 80) -> str:
    """A value as it would be written in a file of JSON, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def _keys_at(cls: type[Settings], path: Sequence[Any]) -> list[str]:
    """The valid keys of the group of settings at `path` inside `cls`."""
    for part in path:
        field = cls.model_fields.get(str(part))
        nested = settings_in(field.annotation) if field else None
        if nested is None:
            return []
        cls = nested
    return list(cls.model_fields)


def settings_in(annotation: Any) -> type[Settings] | None:
    """The settings class in an annotation such as `TrainSettings` or `Crf | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        for option in typing.get_args(annotation):
            found = settings_in(option)
            if found is not None:
                return found
    return None
