"""The checks of TrainConfig that need code; limits of a value stand at its field in config.py."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args, get_origin

from pydantic import BaseModel, ValidationInfo, field_validator, model_validator

from trainable.core.errors import InputError
from trainable.core.files import user_path
from trainable.core.option_errors import allowed_values
from trainable.core.patch_fits import check_patch_fits
from trainable.core.storage import refuse_credentials


class CheckedOptions(BaseModel):
    """The validators of TrainConfig, which has the fields."""

    if TYPE_CHECKING:
        target_shape: tuple[int, int, int]
        depth: int
        val_fraction: float
        test_fraction: float
        folds: int
        fold: int
        loss_weights: tuple[float, float]
        base_loss: Any
        tversky_alpha: float
        tversky_beta: float

    @model_validator(mode="before")
    @classmethod
    def _accept_legacy_spellings(cls, values: Any) -> Any:
        """Read `amp: true` as fp16 and `focal_loss: true` as `base_loss: focal`."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if isinstance(values.get("amp"), bool):
            values["amp"] = "fp16" if values["amp"] else "off"
        if (focal := values.pop("focal_loss", None)) is not None:
            if not isinstance(focal, bool):
                raise ValueError(f"focal_loss is {focal!r}; expected true or false")
            if focal and values.setdefault("base_loss", "focal") != "focal":
                raise ValueError(f"focal_loss is true and base_loss is {values['base_loss']!r}; drop one of the two")
        return values

    @field_validator("labels", mode="before", check_fields=False)
    @classmethod
    def _accept_years(cls, value: Any) -> Any:
        """Read the number 2021, as YAML has it, as the word."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers; pydantic would read 1 and 0."""
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        numbers = value if isinstance(value, list | tuple) else [value]
        if _is_numeric(field.annotation) and any(isinstance(number, bool) for number in numbers):
            raise ValueError(allowed_values(field))
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_empty_paths(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse an empty text for a path; pathlib would read the current folder."""
        assert info.field_name is not None
        field = cls.model_fields[info.field_name]
        values = value if isinstance(value, list | tuple) else [value]
        if "" in values and Path in (field.annotation, *get_args(field.annotation)):
            raise ValueError(f"{allowed_values(field)} that is not empty; . is the current folder")
        return value

    @field_validator("data_dir", mode="before", check_fields=False)
    @classmethod
    def _no_keys_in_a_uri(cls, value: Any) -> Any:
        """Refuse a URI with credentials, which files and logs would show."""
        if isinstance(value, str):
            refuse_credentials(value)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _paths_of_users(cls, value: Any) -> Any:
        """Expand ~, and refuse a path that is not UTF-8."""
        if isinstance(value, tuple):
            return tuple(map(_user_path, value))
        return _user_path(value)

    @field_validator("background", mode="before", check_fields=False)
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        """Read a number or the word auto, so that there is one message for all else."""
        try:
            number = value if value == "auto" else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(value, bool) or (number != "auto" and not math.isfinite(number)):
            raise ValueError(allowed_values(cls.model_fields["background"]))
        return number

    @model_validator(mode="after")
    def _options_fit_each_other(self, info: ValidationInfo) -> Self:
        check_patch_fits(self.target_shape, self.depth, begun=bool((info.context or {}).get("begun")))
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leave no case to train on; lower one of them")
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError(
                f"fold is {self.fold} of {self.folds} folds; expected 2 folds or more and a fold below that"
            )
        if min(self.loss_weights) < 0 or sum(self.loss_weights) == 0:
            raise ValueError(f"loss_weights are {list(self.loss_weights)}; expected two of 0 or more, not both 0")
        if self.base_loss == "tversky" and self.tversky_alpha + self.tversky_beta == 0:
            raise ValueError("tversky_alpha and tversky_beta are both 0; expected one above 0")
        return self


def _user_path(value: Any) -> Any:
    """Return a path with ~ expanded, and any other value as it is; ValueError for a path that is not UTF-8."""
    try:
        return user_path(value) if isinstance(value, Path) else value
    except InputError:
        expected = f"a path in UTF-8, not of the bytes {os.fsencode(value)!r}; rename the file or folder"
        raise ValueError(expected) from None


def _is_numeric(kind: Any) -> bool:
    """Return whether a type has only numbers as values: int, float, or tuples of them."""
    kinds = get_args(kind) if get_origin(kind) is tuple else (kind,)
    plain = (get_args(item)[0] if get_origin(item) is Annotated else item for item in kinds)
    return all(item in (int, float, ...) for item in plain)
