"""Messages for refused values: what was expected, and what was perhaps meant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainable.core.option_errors import UnexpectedValueError, allowed_values, did_you_mean, error_text, expectation


class Settings(BaseModel):
    """A field of each type that TrainConfig and the sections of a sweep have."""

    model_config = ConfigDict(strict=True)

    count: int = Field(1, ge=1, le=8)
    share: float | None = Field(None, gt=0, lt=1)
    length: Annotated[float, Field(gt=0)] | None = None
    kind: Literal["asha", "median"] = "asha"
    on: bool = False
    path: Path = Path()
    pair: tuple[float, float] = (0, 0)
    names: list[str] = []
    gpu: Any = 1

    @field_validator("gpu")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value == "half":
            raise ValueError("a number, not half")
        if isinstance(value, str):
            raise UnexpectedValueError("a number or 'auto'", ["auto"])
        return value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("count", "a whole number >= 1 and <= 8"),
        ("share", "a number > 0 and < 1"),
        ("length", "a number > 0"),
        ("kind", "one of asha, median"),
        ("on", "true or false"),
        ("path", "a path"),
        ("pair", "2 numbers"),
        ("names", "a list"),
    ],
)
def test_a_field_s_values_in_words(name: str, text: str) -> None:
    assert allowed_values(Settings.model_fields[name]) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("count", 0, "a whole number >= 1 and <= 8"),
        ("count", "many", "a whole number >= 1 and <= 8"),
        ("length", 0.0, "a number > 0"),
        ("kind", "ashes", "one of asha, median (did you mean asha?)"),
        ("kind", 3, "one of asha, median"),
        ("pair", (1.0, "x"), "2 numbers"),
        ("names", [3], "a list"),
        ("gpu", "half", "a number, not half"),
        ("gpu", "atuo", "a number or 'auto' (did you mean auto?)"),
        ("gpu", "zzz", "a number or 'auto'"),
    ],
)
def test_what_was_expected_comes_from_the_validator_or_the_type(name: str, value: Any, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: value})
    (error,) = caught.value.errors()
    assert expectation(error, Settings.model_fields[name]) == text


def test_the_text_of_a_validator_s_error_is_given_without_pydantic_s_prefix() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"gpu": "half", "count": "x"})
    texts = [error_text(error) for error in caught.value.errors()]
    assert texts == ["Input should be a valid integer", "a number, not half"]


def test_a_name_is_suggested_only_if_it_is_close() -> None:
    assert did_you_mean("schedular", ["scheduler", "seed"]) == " (did you mean scheduler?)"
    assert did_you_mean("zzz", ["scheduler", "seed"]) == ""
