"""The study of masked and padded features: the parameters of each of its nets (studies/mask_padding/params.yaml)."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from sparring.params import Params, read, validate
from sparring.params.errors import InputError, validated
from sparring.params.names import BASELINE, check_names
from sparring.params.values import Count, CountOrNone, Radius, Section, Share

STUDY_FILE = "studies/mask_padding/params.yaml"
DEFAULT_FILE = "profiles/digits.yaml"  # whatever the study's file does not say, and no row of it uses
UNDEFENDED = "none"
RESEEDED = "seed"

Level = Annotated[int, Field(ge=1, le=255)]


class Dataset(Section):
    """A data set of the study.

    data: the section `data` of its nets.  seeds: each is a split of its own, with its own trainings.
    networks: those that all defences are tried on.  controls: those that the other rows are made of.
    """

    data: dict[str, Any]
    seeds: Annotated[list[CountOrNone], Field(min_length=1)]
    networks: Annotated[list[str], Field(min_length=1)]
    controls: list[str]


class Trained(Section):
    """A network of the study and what its training changes in the section `training`."""

    network: dict[str, Any]
    training: dict[str, Any]


class Defence(Section):
    """What a row trains.

    opponents, transform: the words of its structure.  controls: whether only the data set's `controls` are trained.
    changes: what it changes in other sections.  train: so many training images at most.
    noise_of_mask: the share of a mask whose mean square the noise has, in place of noise.std.
    """

    opponents: str = "none"
    transform: str = "none"
    controls: bool = False
    changes: dict[str, Any] = Field(default_factory=dict)
    train: Count | None = None
    noise_of_mask: Share | None = None


class Linearity(Section):
    images: Count
    steps: Count


class Study(Section):
    eps: Radius
    curve: Annotated[list[Level], Field(min_length=1)]
    radii: Annotated[list[float], Field(min_length=1)]
    images: Count
    linearity: Linearity
    base: dict[str, Any]
    attacks: dict[str, dict[str, Any]]
    datasets: dict[str, Dataset]
    networks: dict[str, Trained]
    defences: dict[str, Defence]

    @field_validator("defences")
    @classmethod
    def _named(cls, defences: dict[str, Defence]) -> dict[str, Defence]:
        check_names(defences, (BASELINE, UNDEFENDED))
        return defences


def load_study(path: str | Path = STUDY_FILE) -> Study:
    """The study's parameters, with all that the default profile has in `base`; InputError in one line as for `load`."""
    study = validated(Study, read(path), str(path))
    return study.model_copy(update={"base": read(DEFAULT_FILE) | study.base})


def networks_of(study: Study, dataset: str, defence: str) -> list[str]:
    """The networks of a row, by name."""
    entry = study.datasets[dataset]
    only = defence != UNDEFENDED and study.defences[defence].controls
    return entry.controls if only else entry.networks


def net_params(study: Study, dataset: str, network: str, seed: int, defence: str) -> Params:
    """The parameters of one net: its structures are the undefended baseline and, of a row, the one named `defence`.

    Raises InputError where there is no such data set, network or defence, or a value is not valid.
    """
    name = f"{STUDY_FILE}: {dataset}, {network}, {defence}"
    for kind, key in (("datasets", dataset), ("networks", network), ("defences", defence)):
        known = getattr(study, kind)
        if key not in known and key != UNDEFENDED:
            raise InputError(f"{STUDY_FILE}: {kind}.{key} is missing; there are {', '.join(known)}")
    trained = study.networks[network]
    row = Defence() if defence == UNDEFENDED else study.defences[defence]
    values = dict(study.base)
    values["data"] = dict(study.datasets[dataset].data)
    values["network"] = dict(trained.network)
    values = _merged(values, {"training": trained.training, "seed": seed, "seeds": [seed]})
    baseline = {"opponents": "pretrained", "detector": "none", "transform": "none"}
    values["structures"] = {BASELINE: baseline}
    if defence != UNDEFENDED:
        words = {"opponents": row.opponents, "detector": "none", "transform": row.transform}
        values["structures"][defence] = words
    values |= _attacks(study)
    values = _merged(values, row.changes)
    if row.train is not None:
        values["data"]["train"] = min(row.train, values["data"]["train"])
    return validate(values, name)


def _attacks(study: Study) -> dict[str, Any]:
    """The sections of attacks: C&W is stored for training too, all others for test images alone; and all of them,
    aimed at each net itself."""
    curve = {f"fgsm_{level}": {"method": "fgsm", "eps": level / 255} for level in study.curve}
    others = {name: entry for name, entry in study.attacks.items() if name != "cw"}
    whole = {"images": study.images, "attacks": study.attacks | curve}
    off = {"autoattack": {"images": 0, "eps": study.eps}, "curve": {"images": 0, "eps": [255]}}
    off["checks"] = {"images": 0, "steps": 1000, "queries": 1}
    return {
        "attacks": {"cw": study.attacks["cw"]},
        "unseen_attacks": others | curve,
        "whitebox": whole | off,
    }


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values with the changes in them, section by section; neither argument is altered."""
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return merged
