"""Settings: typed, frozen, and every wrong key is named with the nearest valid one."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from weakseg.errors import WeaksegError
from weakseg.settings import Settings, validate


class Crop(Settings):
    height: int = Field(gt=0)
    width: int = 8


class Example(Settings):
    colour: Literal["red", "blue"] = "red"
    crop: Crop = Crop(height=4)
    other: Crop | None = None
    sizes: tuple[int, ...] = ()
    workers: int | Literal["auto"] = "auto"
    least: int = 0
    most: int = 9

    @model_validator(mode="after")
    def _ordered(self) -> Example:
        if self.least > self.most:
            raise ValueError("least must not be above most")
        return self


def test_values_become_typed_settings() -> None:
    settings = validate(Example, {"colour": "blue", "crop": {"height": 2}, "sizes": [1, 2]}, "here")
    assert settings == Example(colour="blue", crop=Crop(height=2), sizes=(1, 2))


def test_settings_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Example().least = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"color": "red"}, 'here.color: unknown setting. Did you mean "colour"?'),
        ({"zzz": 1}, "here.zzz: unknown setting. Known: colour, crop, other, sizes, workers, least, most."),
        ({"crop": {"height": 1, "widht": 2}}, 'here.crop.widht: unknown setting. Did you mean "width"?'),
        ({"other": {"height": 1, "widht": 2}}, 'here.other.widht: unknown setting. Did you mean "width"?'),
        ({"crop": {}}, "here.crop.height: this setting is missing."),
        ({"crop": {"height": 0}}, "here.crop.height: expected a number above 0 (found 0)."),
        ({"sizes": [1, "two"]}, "here.sizes[1]: expected a whole number"),
        ({"colour": "green"}, 'here.colour: expected red or blue (found "green").'),
        ({"least": 5, "most": 3}, "here: least must not be above most"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(WeaksegError) as caught:
        validate(Example, values, "here")
    assert str(caught.value).startswith(message)


def test_a_value_that_may_be_of_two_kinds_is_one_fault() -> None:
    with pytest.raises(WeaksegError) as caught:
        validate(Example, {"workers": "many"}, "here")
    assert str(caught.value) == 'here.workers: expected a whole number or auto (found "many").'


@pytest.mark.parametrize("value", [None, True, [1], float("nan"), "x", 10**400, -1])
@pytest.mark.parametrize("key", list(Example.model_fields))
def test_a_message_has_no_words_of_python(key: str, value: Any) -> None:
    try:
        validate(Example, {key: value}, "here")
    except WeaksegError as error:
        assert len(str(error).splitlines()) == 1
        assert not re.search(r"None|True|nstance|input should|Example|Crop|parse|float|dict|\bint\b", str(error))


def test_all_wrong_values_are_told_at_once() -> None:
    with pytest.raises(WeaksegError) as caught:
        validate(Example, {"color": "red", "crop": {"height": -1}}, "")
    assert sorted(line.split(":")[0] for line in str(caught.value).splitlines()) == ["color", "crop.height"]
