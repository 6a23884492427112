"""How bad input is told: in one line that names the thing, the value and the mend."""

import difflib
import json
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class InputError(Exception):
    """Bad input, told in one line that names the thing, the value and the mend."""

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """The text with line breaks and other controls, which names of files and classes may have, as in `\\n`."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def reason(error: BaseException) -> str:
    """What an error of a library says, in one line of 200 characters at most, for an InputError to quote."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def shown(value: Any) -> str:
    """A value as an error line quotes it: as JSON, of 60 characters at most."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def did_you_mean(close: list[str]) -> str:
    """The end of an error line on an unknown name: the names that are close to it, or where the known ones stand."""
    return f"; did you mean {' or '.join(close)}?" if close else "; profiles/digits.yaml lists the known ones"


def validated(model: type[Model], values: Any, name: str) -> Model:
    """The model of these values; InputError in one line that begins with `name`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        more = f" ({error.error_count() - 1} more after this)" if error.error_count() > 1 else ""
        raise InputError(f"{name}: {first_problem(error, model)}{more}") from error


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem that the validation of a model found, in one line that begins with the key."""
    # An unknown key before a missing one: a misspelt key is both.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    kind, value, message = problem["type"], problem["input"], problem["msg"]
    if kind == "extra_forbidden":
        known = _keys(model, problem["loc"])
        return f"{key} is not a key{did_you_mean(difflib.get_close_matches(key.split('.')[-1], known, 1))}"
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
    return f"{key} is {shown(value)}; {message.replace('Input should', 'it should')}"


def _keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    """The keys that there are beside the one at this location."""
    for part in location[:-1]:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        else:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))
