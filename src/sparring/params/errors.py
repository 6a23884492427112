"""This module reports bad input in one line that names the thing, the value and the mend."""

import difflib
import json
import re
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class InputError(Exception):
    """This error reports bad input in one line that names the thing, the value and the mend."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Return the text with line breaks and other control characters, as names of files may have, escaped as `\\n`."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def reason(error: BaseException) -> str:
    """Return a library's error message in one line of 200 characters at most, for an InputError to quote."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def quoted(value: Any) -> str:
    """Return a value as an error line quotes it: as JSON, of 60 characters at most."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def did_you_mean(close: list[str]) -> str:
    """Return the end of an error line on an unknown name: similar names, or the file that lists the known ones."""
    return f"; did you mean {' or '.join(close)}?" if close else "; profiles/digits.yaml lists the known ones"


def validated(model: type[Model], values: Any, name: str) -> Model:
    """Make the model of these values. Raises InputError, in one line that begins with `name`, where one is invalid."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        more = f" ({error.error_count() - 1} more after this)" if error.error_count() > 1 else ""
        raise InputError(f"{name}: {first_problem(error, model)}{more}") from error


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first problem that the validation of a model found, in one line that begins with the key."""
    # An unknown key comes before a missing one, as a misspelt key is both.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    kind, value, message = problem["type"], problem["input"], problem["msg"]
    if kind == "extra_forbidden":
        keys = _keys(model, problem["loc"])
        return f"{key} is not a key{did_you_mean(difflib.get_close_matches(key.split('.')[-1], keys, 1))}"
    if kind == "missing":
        return f"{key} is missing; add it (profiles/digits.yaml has every key, with its meaning)"
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        if isinstance(value, dict):
            return f"{key}{message}" if message.startswith(".") else f"{key}.{message}".lstrip(".")
        if message.startswith("."):
            return key + message
    elif kind in ("model_type", "dict_type"):
        message = "it should be a section: keys with values"
    elif kind in ("too_short", "too_long"):
        message = f"it needs {problem['ctx'].get('min_length', problem['ctx'].get('max_length'))} entries"
    elif kind == "literal_error":
        close = difflib.get_close_matches(str(value), re.findall("'([^']+)'", message), 1)
        message += did_you_mean(close) if close else ""
    return f"{key} is {quoted(value)}; {message.replace('Input should', 'it should')}"


def _keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Return the valid keys in the section of this location."""
    for part in location[:-1]:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))
