"""The study of masked and padded features: the parameters of each of its nets (studies/mask_padding/params.yaml)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sparring.params import Params, read, validate
from sparring.params.errors import InputError, validated
from sparring.params.names import BASELINE, DEFAULT_FILE, check_names, structure_entry
from sparring.params.sections import Data
from sparring.params.values import Count, CountOrNone, Radius, Section, Share, merged

STUDY_FILE = "studies/mask_padding/params.yaml"
UNDEFENDED = "none"
RESEEDED = "seed"
RESEED = 1000  # by which that net's seed is another than its split's

Level = Annotated[int, Field(ge=1, le=255)]


class Dataset(Section):
    """A data set of the study.

    data: the section `data` of its nets.  seeds: each is a split of its own, with its own trainings.
    networks: those that all defences are tried on.  controls: those that the other rows are made of.
    """

    data: Data
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

    @field_validator("datasets", "networks")
    @classmethod
    def _named_too(cls, entries: dict[str, Any]) -> dict[str, Any]:
        check_names(entries, (UNDEFENDED,))
        return entries

    @model_validator(mode="after")
    def _agree(self) -> "Study":
        for name in ("cw", "pgd"):  # which the tables tell more of than of the others
            if name not in self.attacks:
                raise ValueError(f"attacks.{name} is missing; add it")
        for name, dataset in self.datasets.items():
            if len(set(dataset.seeds)) < len(dataset.seeds):
                raise ValueError(f"datasets.{name}.seeds is {dataset.seeds}; name each seed once")
            for network in dataset.networks:
                if network not in self.networks:
                    raise ValueError(
                        f"datasets.{name}.networks has {network}, which is not in networks; use "
                        f"{', '.join(self.networks)}"
                    )
            for network in dataset.controls:
                if network not in dataset.networks:
                    raise ValueError(
                        f"datasets.{name}.controls has {network}, which is not in its networks; add it there"
                    )
        return self


def load_study(path: str | Path = STUDY_FILE) -> Study:
    """The study's parameters, with all that the default profile has in `base`; InputError in one line as for `load`."""
    study = validated(Study, read(path), str(path))
    return study.model_copy(update={"base": read(DEFAULT_FILE) | study.base})


def check_row(study: Study, dataset: str, defence: str) -> None:
    """Raises InputError where the study has no such data set or defence."""
    _check_known("datasets", dataset, study.datasets)
    if defence != UNDEFENDED:
        _check_known("defences", defence, study.defences)


def _check_known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise InputError(f"{STUDY_FILE}: {kind}.{name} is missing; there are {', '.join(known)}")


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
    check_row(study, dataset, defence)
    _check_known("networks", network, study.networks)
    trained = study.networks[network]
    row = Defence() if defence == UNDEFENDED else study.defences[defence]
    own = seed + RESEED if defence == RESEEDED else seed
    values = dict(study.base)
    values["data"] = study.datasets[dataset].data.model_dump()
    values["network"] = dict(trained.network)
    values = merged(values, {"training": trained.training, "seed": seed, "seeds": [own]})
    values["structures"] = {BASELINE: structure_entry("pretrained")}
    if defence != UNDEFENDED:
        values["structures"][defence] = structure_entry(row.opponents, transform=row.transform)
    values |= _attacks(study)
    values = merged(values, row.changes)
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
    off["checks"] = {"images": 0, "steps": study.attacks["pgd"].get("steps", 0) + 1, "queries": 1}
    return {
        "attacks": {"cw": study.attacks["cw"]},
        "unseen_attacks": others | curve,
        "whitebox": whole | off,
    }
