"""This module makes the parameters of each net in the study of masked and padded features.

They come from studies/mask_padding/params.yaml.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sparring.params import Params, read, validate
from sparring.params.errors import InputError, validated
from sparring.params.names import BASELINE, DEFAULT_FILE, check_names, structure_entry
from sparring.params.sections import Data
from sparring.params.values import Count, CountOrZero, Radius, Section, Share, merged

STUDY_FILE = "studies/mask_padding/params.yaml"
UNDEFENDED = "none"
RESEEDED = "seed"
RESEED = 1000  # the difference of that net's seed from the seed of its split

Level = Annotated[int, Field(ge=1, le=255)]


class Dataset(Section):
    """This is a data set of the study.

    data: the section `data` of its nets.  seeds: each makes a split of its own, with its own trainings.
    networks: the networks of most defences.  controls: the networks of the defences with `controls: true`.
    """

    data: Data
    seeds: Annotated[list[CountOrZero], Field(min_length=1)]
    networks: Annotated[list[str], Field(min_length=1)]
    controls: list[str]


class Trained(Section):
    """This is a network of the study, with its changes in the section `training`."""

    network: dict[str, Any]
    training: dict[str, Any]


class Defence(Section):
    """A defence says how the nets of a row are trained.

    opponents, transform: as in its entry of `structures`.
    controls: whether only the data set's `controls` are trained.
    changes: its changes in other sections.  train: the most training images.
    noise_of_mask: a mask's share; the noise then has the mean square of that mask's change, in place of noise.std.
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
    def _check_defence_names(cls, defences: dict[str, Defence]) -> dict[str, Defence]:
        check_names(defences, (BASELINE, UNDEFENDED))
        return defences

    @field_validator("datasets", "networks")
    @classmethod
    def _check_entry_names(cls, entries: dict[str, Any]) -> dict[str, Any]:
        check_names(entries, (UNDEFENDED,))
        return entries

    @model_validator(mode="after")
    def _check_references(self) -> "Study":
        for name in ("cw", "pgd"):  # The tables need these two.
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
    """Read the study's parameters, with the default profile's values in `base`. Raises InputError as `params.load`."""
    study = validated(Study, read(path), str(path))
    return study.model_copy(update={"base": read(DEFAULT_FILE) | study.base})


def check_row(study: Study, dataset: str, defence: str) -> None:
    """Raise InputError where the study has no such data set or defence."""
    _check_known("datasets", dataset, study.datasets)
    if defence != UNDEFENDED:
        _check_known("defences", defence, study.defences)


def _check_known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise InputError(f"{STUDY_FILE}: {kind}.{name} is missing; there are {', '.join(known)}")


def networks_of(study: Study, dataset: str, defence: str) -> list[str]:
    """Return the names of the networks of a row."""
    entry = study.datasets[dataset]
    is_control_row = defence != UNDEFENDED and study.defences[defence].controls
    return entry.controls if is_control_row else entry.networks


def net_params(study: Study, dataset: str, network: str, seed: int, defence: str) -> Params:
    """Return the parameters of one net. Its structures are the undefended baseline and, in a row, the one of `defence`.

    Raises InputError where there is no such data set, network or defence, or a value is not valid.
    """
    error_prefix = f"{STUDY_FILE}: {dataset}, {network}, {defence}"
    check_row(study, dataset, defence)
    _check_known("networks", network, study.networks)
    trained = study.networks[network]
    row = Defence() if defence == UNDEFENDED else study.defences[defence]
    net_seed = seed + RESEED if defence == RESEEDED else seed
    values = dict(study.base)
    values["data"] = study.datasets[dataset].data.model_dump()
    values["network"] = dict(trained.network)
    values = merged(values, {"training": trained.training, "seed": seed, "seeds": [net_seed]})
    values["structures"] = {BASELINE: structure_entry("pretrained")}
    if defence != UNDEFENDED:
        values["structures"][defence] = structure_entry(row.opponents, transform=row.transform)
    values |= _attacks(study)
    values = merged(values, row.changes)
    if row.train is not None:
        values["data"]["train"] = min(row.train, values["data"]["train"])
    return validate(values, error_prefix)


def _attacks(study: Study) -> dict[str, Any]:
    """Return the sections of attacks. C&W is stored for training too, all others for test images alone, and all of them
    attack each net itself."""
    curve = {f"fgsm_{level}": {"method": "fgsm", "eps": level / 255} for level in study.curve}
    unseen = {name: entry for name, entry in study.attacks.items() if name != "cw"}
    whitebox = {"images": study.images, "attacks": study.attacks | curve}
    disabled = {"autoattack": {"images": 0, "eps": study.eps}, "curve": {"images": 0, "eps": [255]}}
    disabled["checks"] = {"images": 0, "steps": study.attacks["pgd"].get("steps", 0) + 1, "queries": 1}
    return {
        "attacks": {"cw": study.attacks["cw"]},
        "unseen_attacks": unseen | curve,
        "whitebox": whitebox | disabled,
    }
