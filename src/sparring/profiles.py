"""A profile is a named set of parameters. profiles/digits.yaml holds every key, the others what they change in it."""

import difflib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter

from sparring import params
from sparring.layout import replacing
from sparring.params.errors import InputError
from sparring.params.names import BASELINE, PARAMS_FILE, structure_entry

FOLDER = Path("profiles")
DEFAULT = "digits"
FREE_NAMES = ("attacks", "unseen_attacks", "structures", "whitebox.attacks", "sampler.weights", "fixed.weights")
"""These are the sections whose keys the user chooses, so that a setting may add one."""


def _implied_by_attack(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {"loss": "cross_entropy"} if entry.get("method", name) == "pgd" else {}


def _implied_by_structure(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    return structure_entry("pretrained" if name == BASELINE else "none")


# By section, a function of an entry's name and content: keys that it must have today, with the values implied before.
IMPLIED: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "attacks": _implied_by_attack,
    "unseen_attacks": _implied_by_attack,
    "whitebox.attacks": _implied_by_attack,
    "structures": _implied_by_structure,
}


def apply(name: str, settings: Sequence[str] = (), path: Path = Path(PARAMS_FILE)) -> list[str]:
    """Write profile `name`, changed by the `key=value` settings, to `path`, with the default profile's comments.

    Returns a line `key: old → new` for every value that is not what the file held before.
    Raises InputError, and leaves the file as it is, for an unknown profile or key or a value that is not valid.
    """
    values = _default()
    profile_names = sorted(profile.stem for profile in FOLDER.glob("*.yaml"))
    if name not in profile_names:
        raise InputError(f"profile {name} does not exist; use {', '.join(profile_names)}")
    yaml = _round_trip()
    if name != DEFAULT:
        _merge(values, params.read(FOLDER / f"{name}.yaml"))
    for setting in settings:
        _apply_setting(values, setting)
    for keys, value in list(_missing(values, values, ())):
        section = values
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    changed = ", changed by --set" if settings else ""
    text = buffer.getvalue().replace(f"the profile `{DEFAULT}`.", f"the profile `{name}`{changed}.", 1)
    after = YAML(typ="safe").load(text)
    params.validate(after, str(path))
    before = _previous(path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [f"{path} is new: profile {name}"] if before is None else list(_changes(before, after))


def missing(values: Any) -> dict[str, Any]:
    """Return the keys, dotted, that a parameter file of an older version lacks, with values that change no result.

    values: the content of the file. The new values are those of the default profile, and in an entry that the user
    named, those of IMPLIED.
    """
    return {".".join(keys): _plain(value) for keys, value in _missing(values, _default(), ())}


def fill(path: Path = Path(PARAMS_FILE)) -> list[str]:
    """Add the keys of `missing` to a parameter file, with the default profile's comments.

    All else stays as it is. Returns a line `key: value` for each key. Raises InputError, and leaves the file as it is,
    where the result is not valid.
    """
    yaml = _round_trip()
    params.read(path)  # raises InputError, in one line, where the file cannot be read
    values, default = yaml.load(path), _default()
    additions = list(_missing(values, default, ()))
    for keys, value in additions:
        section, defaults = values, default
        for key in keys[:-1]:
            section, defaults = section[key], defaults.get(key, {})
        _insert(section, defaults, keys[-1], value)
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    params.validate(YAML(typ="safe").load(buffer.getvalue()), str(path))
    with replacing(path) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    return [f"{'.'.join(keys)}: {_as_text(_plain(value))}" for keys, value in additions]


def _default() -> CommentedMap:
    path = FOLDER / f"{DEFAULT}.yaml"
    if not path.exists():
        raise InputError(f"{path} is missing; run this in the repository's main folder")
    return _round_trip().load(path)


def _missing(values: Any, default: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each key that `values` lacks, as the keys from the top, with its value.  above: the keys of the section."""
    if not isinstance(values, dict):
        return
    section = ".".join(above)
    if section in FREE_NAMES:
        if section == "structures" and BASELINE not in values and BASELINE in default:
            yield (*above, BASELINE), default[BASELINE]
        for name, entry in values.items():
            implied = {} if not isinstance(entry, dict) else IMPLIED.get(section, lambda name, entry: {})(name, entry)
            yield from (((*above, name, key), value) for key, value in implied.items() if key not in entry)
        return
    for key, value in default.items():
        if key not in values:
            # A network's keys depend on its name, so another network does not take those of the default profile.
            if above != ("network",):
                yield (*above, key), value
        elif isinstance(value, dict):
            yield from _missing(values[key], value, (*above, key))


def _insert(section: CommentedMap, default: Any, key: str, value: Any) -> None:
    """Insert a key where the default profile has it, with its comment there."""
    order = list(default)
    predecessors = [name for name in order[: order.index(key)] if name in section] if key in order else list(section)
    section.insert(list(section).index(predecessors[-1]) + 1 if predecessors else 0, key, value)
    if key in order and key in default.ca.items:
        section.ca.items[key] = default.ca.items[key]


def _plain(value: Any) -> Any:
    """Return the value in plain dictionaries and lists."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1 << 20  # never break a line
    return yaml


def _merge(into: CommentedMap, changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        old = into.get(key)
        # A network of another name has other keys, so it replaces the old one whole.
        is_same_section = (
            isinstance(value, dict) and isinstance(old, CommentedMap) and value.get("name") in (None, old.get("name"))
        )
        if is_same_section:
            _merge(old, value)
        else:
            into[key] = _in_one_line(value)


def _apply_setting(values: CommentedMap, setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {setting} is not key=value; write it like --set sampler.adv_ratio=0.25")
    try:
        value = params.yaml_value(text)
    except ValueError as error:
        raise InputError(f"--set {key}: {error}; quote text") from error
    section = values
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if not isinstance(section, dict):
            raise InputError(f"--set {key}: {above} is {_as_text(section)}, not a section with keys")
        if part not in section:
            if not any(f"{above}.".startswith(f"{free}.") for free in FREE_NAMES):
                close = difflib.get_close_matches(part, section, 1)
                hint = f"did you mean {close[0]}?" if close else f"use {', '.join(section) or 'none'}"
                raise InputError(f"--set {key}: {'.'.join(parts[: depth + 1])} is not a key; {hint}")
            if not section:
                section.fa.set_flow_style()
            section[part] = _in_one_line({})
        if depth < len(parts) - 1:
            section = section[part]
    section[parts[-1]] = _in_one_line(value)


def _in_one_line(value: Any) -> Any:
    """Return the value in a form that ruamel.yaml writes in one line."""
    if isinstance(value, dict):
        section = CommentedMap({key: _in_one_line(item) for key, item in value.items()})
        section.fa.set_flow_style()
        return section
    if isinstance(value, list):
        row = CommentedSeq(_in_one_line(item) for item in value)
        row.fa.set_flow_style()
        return row
    return value


def _previous(path: Path) -> dict[str, Any] | None:
    """Return the parameters in a file, or None where it holds none."""
    try:
        values = params.read(path)
    except InputError:
        return None
    return values if isinstance(values, dict) else None


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    old, new = dict(_leaves(before)), dict(_leaves(after))
    for key in {**new, **old}:
        if old.get(key) != new.get(key):
            yield f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}"


def _leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text of every value that is no section."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", _as_text(value)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


class _Representer(RoundTripRepresenter):
    """This representer writes null as `null`; ruamel.yaml's own writes nothing."""

    def represent_none(self, value: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)
