"""This module defines the types of the values in params.yaml."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _share(number: float) -> float:
    if not 0 <= number <= 1:
        raise ValueError("it is a share, so 0 to 1")
    return number


def fraction(value: Any) -> Any:
    """Return 8/255 for "8/255", and anything else as it is. Raises ValueError for a text with / that is no fraction."""
    if not isinstance(value, str) or "/" not in value:
        return value
    parts = re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*", value)
    if parts is None:
        raise ValueError("it is neither a number nor a fraction such as 8/255")
    above, below = map(float, parts.groups())
    if below == 0:
        raise ValueError("it divides by 0; write a fraction such as 8/255")
    return above / below


def radius(value: float) -> float:
    """Return an L∞ radius as it is. Raises ValueError where it is no share of the pixel range."""
    if not 0 <= value <= 1:
        mend = f"; {value:g}/255 is {value / 255:.3g}" if 1 < value <= 255 else ""
        raise ValueError(f"an L∞ radius is a share of the pixel range, so 0 to 1{mend}")
    return value


def _whole_levels(value: float) -> float:
    """Return an L∞ radius as it is. Raises ValueError where it is no whole number of levels of 255, from 1 on."""
    level = max(1, round(255 * radius(value)))
    if abs(255 * value - level) > 0.01:
        raise ValueError(f"it is a whole number of levels of 255; use {level}/255")
    return value


# Every number but a count may be written as a fraction.
Share = Annotated[float, AfterValidator(_share), BeforeValidator(fraction)]
BelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(fraction)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(fraction)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(fraction)]
Radius = Annotated[float, Field(gt=0), AfterValidator(radius), BeforeValidator(fraction)]
Levels = Annotated[float, AfterValidator(_whole_levels), BeforeValidator(fraction)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A section of params.yaml: it is immutable, allows no other keys, and converts no types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the changes applied, section by section. The arguments are not altered."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        result[key] = merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return result
