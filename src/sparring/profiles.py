"""Named sets of parameters: profiles/digits.yaml holds every key, the other profiles hold what they change in it."""

import difflib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from sparring import params
from sparring.layout import replacing
from sparring.params.errors import InputError
from sparring.params.names import BASELINE, PARAMS_FILE, structure_entry

FOLDER = Path("profiles")
DEFAULT = "digits"
FREE_NAMES = ("attacks", "unseen_attacks", "structures", "whitebox.attacks", "sampler.weights", "fixed.weights")
"""The sections whose keys are the user's to choose, so that a setting may add one."""


def _of_attack(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {"loss": "cross_entropy"} if entry.get("method", name) == "pgd" else {}


def _of_structure(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    return structure_entry("pretrained" if name == BASELINE else "none")


# What an entry of such a section had before it had to say it: (name, entry) → the words and their values.
WORDS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "attacks": _of_attack,
    "unseen_attacks": _of_attack,
    "whitebox.attacks": _of_attack,
    "structures": _of_structure,
}


def apply(name: str, settings: Sequence[str] = (), path: Path = Path(PARAMS_FILE)) -> list[str]:
    """Write profile `name`, changed by the `key=value` settings, to `path`; the comments of the default profile stay.

    Returns a line `key: old → new` for every value that is not what the file held before.
    Raises InputError, and leaves the file as it is, for an unknown profile or key or a value that is not valid.
    """
    values = _default()
    known = sorted(profile.stem for profile in FOLDER.glob("*.yaml"))
    if name not in known:
        raise InputError(f"profile {name} does not exist; use {', '.join(known)}")
    yaml = _round_trip()
    if name != DEFAULT:
        _merge(values, params.read(FOLDER / f"{name}.yaml"))
    for setting in settings:
        _set(values, setting)
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
    """What a parameter file of an older version lacks, by dotted key, with the value that changes nothing.

    values: as the file holds them. The value is that of the default profile; of an entry that the user named, the one
    of WORDS.
    """
    return {".".join(keys): _plain(value) for keys, value in _missing(values, _default(), ())}


def fill(path: Path = Path(PARAMS_FILE)) -> list[str]:
    """Add to a parameter file what `missing` finds, with the default profile's comments; a line `key: value` for each.

    All else stays as it is. Raises InputError, and leaves the file as it is, where it is not valid even so.
    """
    yaml = _round_trip()
    params.read(path)  # tells in one line what is wrong with the file itself
    values, default = yaml.load(path), _default()
    found = list(_missing(values, default, ()))
    for keys, value in found:
        section, model = values, default
        for key in keys[:-1]:
            section, model = section[key], model.get(key, {})
        _insert(section, model, keys[-1], value)
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    params.validate(YAML(typ="safe").load(buffer.getvalue()), str(path))
    with replacing(path) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")
    return [f"{'.'.join(keys)}: {_shown(_plain(value))}" for keys, value in found]


def _default() -> CommentedMap:
    path = FOLDER / f"{DEFAULT}.yaml"
    if not path.exists():
        raise InputError(f"{path} is missing; run this in the repository's main folder")
    return _round_trip().load(path)


def _missing(values: Any, default: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(values, dict):
        return
    section = ".".join(above)
    if section in FREE_NAMES:
        if section == "structures" and BASELINE not in values and BASELINE in default:
            yield (*above, BASELINE), default[BASELINE]
        for name, entry in values.items():
            words = {} if not isinstance(entry, dict) else WORDS.get(section, lambda name, entry: {})(name, entry)
            yield from (((*above, name, key), value) for key, value in words.items() if key not in entry)
        return
    for key, value in default.items():
        if key not in values:
            # Which keys a network has depends on its name: those of the default profile's are not another's.
            if above != ("network",):
                yield (*above, key), value
        elif isinstance(value, dict):
            yield from _missing(values[key], value, (*above, key))


def _insert(section: CommentedMap, model: Any, key: str, value: Any) -> None:
    """Put a key behind the one that it follows in the default profile, with its comment."""
    order = list(model)
    before = [name for name in order[: order.index(key)] if name in section] if key in order else list(section)
    section.insert(list(section).index(before[-1]) + 1 if before else 0, key, value)
    if key in order and key in model.ca.items:
        section.ca.items[key] = model.ca.items[key]


def _plain(value: Any) -> Any:
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
        # A network of another name has other keys, so nothing of the old one stays.
        same = (
            isinstance(value, dict) and isinstance(old, CommentedMap) and value.get("name") in (None, old.get("name"))
        )
        if same:
            _merge(old, value)
        else:
            into[key] = _in_one_line(value)


def _set(values: CommentedMap, setting: str) -> None:
    key, equals, text = setting.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {setting} is not key=value; write it like --set sampler.adv_ratio=0.25")
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise InputError(f"--set {key}: {' '.join(text.split())} is not a YAML value; quote text") from error
    section = values
    for depth, part in enumerate(parts):
        above = ".".join(parts[:depth])
        if not isinstance(section, dict):
            raise InputError(f"--set {key}: {above} is {_shown(section)}, not a section with keys")
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
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", _shown(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


class _Representer(RoundTripRepresenter):
    """Writes null as `null`; ruamel.yaml leaves the place empty."""

    def represent_none(self, value: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)
