"""Typed settings whose errors name the key and the nearest valid one."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

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
        lines = [_explain(cls, dict(item), where) for item in error.errors(include_url=False)]
        raise WeaksegError("\n".join(lines)) from None


def changed(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Valid values as JSON, without those that are the defaults of today."""
    return cls.model_validate(dict(values)).model_dump(mode="json", exclude_defaults=True)


def _explain(cls: type[Settings], error: dict[str, Any], where: str) -> str:
    *parents, key = error["loc"] or ("",)
    name = ".".join(str(part) for part in (where, *parents, key) if part != "")
    if error["type"] == "extra_forbidden":
        known = _keys_at(cls, parents)
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(known) or 'none'}."
        return f"{name}: unknown setting. {hint}"
    if error["type"] == "missing":
        return f"{name}: this setting is missing."
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message[:1].lower()}{message[1:]} (found {error['input']!r})."


def _keys_at(cls: type[Settings], path: Sequence[Any]) -> list[str]:
    """The valid keys of the group of settings at `path` inside `cls`."""
    for part in path:
        field = cls.model_fields.get(str(part))
        nested = _settings_in(field.annotation) if field else None
        if nested is None:
            return []
        cls = nested
    return list(cls.model_fields)


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The settings class in an annotation such as `TrainSettings` or `Crf | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        for option in typing.get_args(annotation):
            found = _settings_in(option)
            if found is not None:
                return found
    return None
