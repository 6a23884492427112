"""This module makes variants of params.yaml: for the rows of Table 3, and for training without one attack."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from sparring.params import Params, read
from sparring.params.errors import InputError, first_problem, validated
from sparring.params.names import ABLATED, PARAMS_FILE, RANDOM, check_names, structure_entry
from sparring.params.structures import Sampler, Structure
from sparring.params.values import Count, Section, Share

ABLATION_FILE = "studies/table3/params.yaml"


class Row(Section):
    """A row of Table 3 changes these values of params.yaml."""

    input: Literal["full", "low"]
    adv_ratio: Share
    layers: Count


class Ablation(Section):
    """The content of studies/table3/params.yaml."""

    rows: Annotated[dict[str, Row], Field(min_length=1)]

    @field_validator("rows")
    @classmethod
    def _check_names(cls, rows: dict[str, Row]) -> dict[str, Row]:
        check_names(rows, ())
        return rows


def load_rows(path: str | Path = ABLATION_FILE) -> dict[str, Row]:
    """Read the rows of Table 3, by name. Raises InputError as `params.load`."""
    return validated(Ablation, read(path), str(path)).rows


def row_params(params: Params, name: str, rows: dict[str, Row]) -> Params:
    """Return `params` with the detector and the adversarial share of a row of Table 3, and with ABLATED as only
    structure.

    Raises InputError for a row that does not exist, or whose share does not fit the sampler's range.
    """
    if name not in rows:
        raise InputError(f"{ABLATION_FILE}: rows.{name} is missing; there are {', '.join(rows)}")
    row = rows[name]
    detector = params.detector.model_copy(update={"input": row.input, "layers": row.layers})
    try:
        sampler = Sampler.model_validate(params.sampler.model_dump() | {"adv_ratio": row.adv_ratio})
    except ValidationError as error:
        raise InputError(
            f"{ABLATION_FILE}: rows.{name} does not go with {PARAMS_FILE}: sampler.{first_problem(error, Sampler)}"
        ) from error
    structure = Structure.model_validate(structure_entry("sampler", detector="detector"))
    changes = {"detector": detector, "sampler": sampler, "structures": {ABLATED: structure}, "unseen_attacks": {}}
    return params.model_copy(update=changes)


def without(params: Params, attack: str) -> Params:
    """Return `params` for training without one attack: it is in no list, and only the structures that train on stored
    attacks remain. Raises InputError where there is no such attack, no other one that is drawn, or no such structure.
    """
    structures = only(params, attack).structures
    if params.evolving.start == attack and any(entry.evolves for entry in structures.values()):
        raise InputError(
            f"{PARAMS_FILE}: evolving.start is {attack}, so that structures that follow the net would still meet it; "
            f"use {RANDOM}"
        )
    remaining = {name: entry for name, entry in params.attacks.items() if name != attack}
    changes: dict[str, Any] = {"attacks": remaining, "structures": structures}
    for section in {structure.opponents for structure in structures.values()}:
        settings = getattr(params, section)
        weights = {name: weight for name, weight in settings.weights.items() if name != attack}
        if not any(weights.get(name, 1) for name in remaining):
            raise InputError(f"{PARAMS_FILE}: {section} draws no attack but {attack}; leaving it out leaves none")
        changes[section] = settings.model_copy(update={"weights": weights})
    return params.model_copy(update=changes)


def only(params: Params, attack: str) -> Params:
    """Return `params` for evaluating the structures that train on stored attacks, under one attack alone.

    Raises InputError as `without`.
    """
    if attack not in params.attacks:
        raise InputError(f"{PARAMS_FILE}: attacks.{attack} is missing; there are {', '.join(params.attacks)}")
    structures = {name: structure for name, structure in params.structures.items() if structure.stored}
    if not structures:
        raise InputError(f"{PARAMS_FILE}: structures has none that trains on stored attacks, so none can be left out")
    changes = {"attacks": {attack: params.attacks[attack]}, "unseen_attacks": {}, "structures": structures}
    return params.model_copy(update=changes)
