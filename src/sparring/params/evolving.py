"""This module makes the parameters of each net in the study of evolving opponents (studies/evolving/params.yaml)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sparring.params import Params, read, validate
from sparring.params.errors import InputError, validated
from sparring.params.names import BASELINE, DEFAULT_FILE, EVOLVING, check_names, structure_entry
from sparring.params.values import Count, CountOrZero, Positive, Section, merged

STUDY_FILE = "studies/evolving/params.yaml"
REFERENCE = "pgd"  # the white-box attack of the study, beside AutoAttack


class Method(Section):
    """A method says how nets are trained.

    opponents, evolving: as in their entry of `structures`.  step: the step of the opponents, in units of eps.
    changes: the other changes in the section of params.yaml that describes the opponents.
    """

    opponents: Literal["evolving", "online_fgsm", "online_pgd", "sampler"]
    evolving: Literal["evolving", "none"] = "none"
    step: Positive
    changes: dict[str, Any]

    @property
    def section(self) -> str:
        """Return the name of the section that gets the training's eps and step."""
        return EVOLVING if self.evolving != "none" or self.opponents == "sampler" else self.opponents


class Training(Section):
    """A training of the study.  eps: in levels of 255.  autoattack: the images that AutoAttack attacks; 0 for none."""

    method: str
    eps: Annotated[int, Field(ge=1, le=127)]
    seed: CountOrZero
    epochs: Count
    autoattack: CountOrZero


class Test(Section):
    """How each net is attacked by PGD.  images: the test images, at most."""

    images: Count
    steps: Count


class Study(Section):
    base: dict[str, Any]
    test: Test
    methods: dict[str, Method]
    trainings: dict[str, Training]

    @model_validator(mode="after")
    def _check_names(self) -> "Study":
        check_names(self.methods, (BASELINE,))
        check_names(self.trainings, ())
        for name, training in self.trainings.items():
            if training.method not in self.methods:
                raise ValueError(
                    f"trainings.{name}.method is {training.method}, which is not in methods; use "
                    f"{', '.join(self.methods)}"
                )
        return self


def load_study(path: str | Path = STUDY_FILE) -> Study:
    """Read the study's parameters, with the default profile's values in `base`. Raises InputError as `params.load`."""
    study = validated(Study, read(path), str(path))
    return study.model_copy(update={"base": merged(read(DEFAULT_FILE), study.base)})


def net_params(study: Study, name: str | None = None) -> Params:
    """Return the parameters of one training, whose structure has the name of its method.

    Without a name, they are those of the source of images and stored attacks for all trainings. Raises InputError where
    there is no such training, or a value is not valid.
    """
    values = merged(study.base, {"seeds": [0]}) | {"structures": {BASELINE: structure_entry("pretrained")}}
    if name is None:
        return validate(values, STUDY_FILE)
    if name not in study.trainings:
        raise InputError(f"{STUDY_FILE}: trainings.{name} is missing; there are {', '.join(study.trainings)}")
    training = study.trainings[name]
    method, eps = study.methods[training.method], training.eps / 255
    values["structures"][training.method] = structure_entry(method.opponents, evolving=method.evolving)
    values = merged(
        values, {"seeds": [training.seed], "training": {"epochs": training.epochs}, "monitor": {"eps": eps}}
    )
    values = merged(values, {method.section: {"eps": eps, "step": method.step * eps} | method.changes})
    pgd = {"method": "pgd", "eps": eps, "step": eps / 10, "steps": study.test.steps, "norm": "linf", "restarts": 1}
    values["whitebox"] = {
        "images": study.test.images,
        "attacks": {REFERENCE: pgd | {"loss": "cross_entropy"}},
        "autoattack": {"images": training.autoattack, "eps": eps},
        "checks": {"images": 0, "steps": study.test.steps + 1, "queries": 1},
        "curve": {"images": 0, "eps": [255]},
    }
    return validate(values, f"{STUDY_FILE}: {name}")
