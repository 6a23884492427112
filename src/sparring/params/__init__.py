"""This package defines params.yaml, with every key, as typed, validated models.

Every key is required, so that a params.yaml describes a run completely, without any default.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparring.params import demands
from sparring.params.attacks import Attack, attack_entries
from sparring.params.errors import InputError, validated
from sparring.params.names import (
    AUTOATTACK,
    BASELINE,
    CLEAN,
    EVOLVING,
    KNOWN_DETECTORS,
    MIXTURE,
    PARAMS_FILE,
    RANDOM,
    TABLE_COLUMNS,
    check_names,
)
from sparring.params.sections import Data, Detection, Mixture, Monitor, Network, Store, Training
from sparring.params.structures import Detector, Evolving, Online, Sampler, Structure
from sparring.params.transforms import Cutout, Erasing, Mask, MaskPadding, Noise, Padding, Transform
from sparring.params.values import CountOrZero, Section
from sparring.params.whitebox import Whitebox

PLAIN_PASSES = 3  # one forward, and two backward: to the weights and to the feature maps


class Params(Section):
    """Params holds all sections of params.yaml; profiles/digits.yaml explains every key."""

    seed: CountOrZero
    seeds: Annotated[list[CountOrZero], Field(min_length=1)]
    device: str
    precision: Literal["auto", "float32", "bfloat16"]
    deterministic: bool
    data: Data
    network: Network
    training: Training
    store: Store
    attacks: dict[str, Attack]
    unseen_attacks: dict[str, Attack]
    sampler: Sampler
    fixed: Sampler
    online_fgsm: Online
    online_pgd: Online
    evolving: Evolving
    monitor: Monitor
    detector: Detector
    mask: Mask
    padding: Padding
    mask_padding: MaskPadding
    noise: Noise
    cutout: Cutout
    erasing: Erasing
    resizing: Padding
    none: dict[str, Any]
    pretrained: dict[str, Any]
    structures: dict[str, Structure]
    mixture: Mixture
    whitebox: Whitebox
    detection: Detection

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("use auto, cpu, cuda or cuda:<number>")
        return device

    @field_validator("seeds")
    @classmethod
    def _check_and_sort_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("name each seed once")
        return sorted(seeds)  # the same results, to the byte, in whatever order they are named

    @field_validator("attacks", "unseen_attacks", mode="before")
    @classmethod
    def attack_entries(cls, entries: Any) -> Any:
        return attack_entries(entries, (CLEAN, MIXTURE, RANDOM, EVOLVING))

    @field_validator("structures")
    @classmethod
    def _check_structures(cls, structures: dict[str, Structure]) -> dict[str, Structure]:
        check_names(structures, ("pretrained", *KNOWN_DETECTORS, *TABLE_COLUMNS))
        if BASELINE not in structures:
            raise ValueError(
                f".{BASELINE} is missing; add {BASELINE}: {{opponents: pretrained, evolving: none, detector: none, "
                "transform: none}"
            )
        for name, structure in structures.items():
            if (name == BASELINE) != structure.pretrained:
                right = "it is the pretrained net, so use pretrained"
                mend = right if name == BASELINE else f"that net is {BASELINE}; name the opponents to train against"
                raise ValueError(f".{name}.opponents is {structure.opponents}; {mend}")
        # The baseline comes first in every table, wherever the file has it.
        return {BASELINE: structures[BASELINE]} | structures

    @model_validator(mode="after")
    def _check_sections(self) -> "Params":
        if not self.attacks:
            raise ValueError("attacks is empty; name at least one")
        if self.training.keep != "last" and self.data.validation == 0:
            raise ValueError(
                f"training.keep is {self.training.keep}, but data.validation is 0; give it images to choose by, or use "
                "last"
            )
        if self.training.keep == "best_robust" and not self.monitor.every:
            raise ValueError(
                "training.keep is best_robust, but monitor.every is 0; set it to 1, so that there is an accuracy to "
                "choose by, or use last"
            )
        for name in self.unseen_attacks:
            if name in self.attacks:
                raise ValueError(f"unseen_attacks.{name} is also in attacks; an unseen attack needs a name of its own")
        for section in ("sampler", "fixed"):
            weights = getattr(self, section).weights
            for name in weights:
                if name not in self.attacks:
                    raise ValueError(f"{section}.weights.{name} is not in attacks; remove it from {section}.weights")
            if not any(weights.get(name, 1) for name in self.attacks):
                raise ValueError(f"{section}.weights are all 0; give at least one attack a weight above 0")
        self._check_evolving()
        for key, attack in self.library_attacks.items():
            if problem := demands.image_size_problem(str(attack.library_class), attack.arguments, self.data.image_size):
                raise ValueError(f"{key} is {attack.method}; {problem}")
        return self

    def _check_evolving(self) -> None:
        """Raise ValueError where `evolving` does not fit the other sections, or a structure that uses it."""
        start, names = self.evolving.start, [name for name, structure in self.structures.items() if structure.evolves]
        if start != RANDOM and start not in self.attacks:
            allowed = ", ".join([RANDOM, *self.attacks])
            raise ValueError(f"evolving.start is {start}, which is not in attacks; use {allowed}")
        if names and self.evolving.frame == "moving" and self.training.crop_area != [1, 1]:
            raise ValueError(
                f"evolving.frame is moving, and training.crop_area {self.training.crop_area}; only shifts and flips "
                "move pixels whole, so use crop_area: [1.0, 1.0] with a shift, or frame: fixed"
            )
        for name in names:
            structure = self.structures[name]
            if structure.detector != "none" and not structure.stored and self.evolving.adv_ratio == 1:
                raise ValueError(
                    f"structures.{name}.detector has no clean images to learn from, as evolving.adv_ratio is 1; lower "
                    "it, or use detector: none"
                )

    def structure(self, name: str) -> Structure:
        """Return the entry of `structures`. Raises InputError where there is none of that name."""
        if name not in self.structures:
            names = ", ".join(self.structures)
            raise InputError(f"{PARAMS_FILE}: structures.{name} is missing; there are {names}")
        return self.structures[name]

    @property
    def all_attacks(self) -> list[str]:
        """Return the names of the attacks whose images are stored. Those that no structure trains on come last."""
        return [*self.attacks, *self.unseen_attacks]

    @property
    def trained(self) -> dict[str, Structure]:
        """Return the structures without the baseline, which is a copy of the pretrained net."""
        return {name: structure for name, structure in self.structures.items() if name != BASELINE}

    def transform(self, structure: str) -> Transform | None:
        """Return the settings of a structure's transform, or None where it has none."""
        word = self.structure(structure).transform
        return None if word == "none" else getattr(self, word)

    def predicts_at_random(self, structure: str) -> bool:
        """Tell whether a structure's predictions are averaged over draws of its transform."""
        transform = self.transform(structure)
        return transform is not None and transform.draws > 0

    def seeds_of(self, structure: str) -> list[int]:
        """Return the seeds of a structure's trainings. The pretrained net is trained once, with `seed`."""
        return [self.seed] if structure == BASELINE else self.seeds

    def passes(self, structure: str) -> int:
        """Return the cost of a structure's training for one visit of an image, in forward passes.

        A backward pass costs one for the gradient of the image, and two for those of weights and feature maps.
        """
        entry, plain = self.structure(structure), PLAIN_PASSES
        if entry.online:
            return plain + 2 * int(getattr(self, entry.opponents).steps)
        if entry.evolves:
            return plain + (4 if self.evolving.consistency else 2)
        return plain

    @property
    def library_attacks(self) -> dict[str, Attack]:
        """Return every attack that torchattacks runs, by its key in params.yaml."""
        attacks = [*self.attacks.items(), *self.unseen_attacks.items()]
        attacks += [(name, attack) for name, (attack, _) in self.whitebox.runs.items()]
        return {
            self.key(name, attack): attack
            for name, attack in attacks
            if attack.library_class or attack.method == AUTOATTACK
        }

    def key(self, name: str, attack: Attack) -> str:
        """Return the key in params.yaml that describes an attack which runs under this name."""
        sections = {"attacks": self.attacks, "unseen_attacks": self.unseen_attacks}
        for section, entries in (sections | {"whitebox.attacks": self.whitebox.attacks}).items():
            if entries.get(name) == attack:
                return f"{section}.{name}"
        return "whitebox.autoattack" if name == AUTOATTACK else "whitebox.checks"

    def describe(self, name: str, attack: Attack) -> str:
        """Return the words by which an error refers to an attack which runs under this name."""
        return f"{PARAMS_FILE}: {self.key(name, attack)}"


def load(path: str | Path = PARAMS_FILE) -> Params:
    """Read and validate a parameter file, the way DVC reads it (YAML 1.2).

    Raises InputError, in one line, for a file that is missing, is not YAML, or has an unknown, missing or invalid key.
    """
    return validate(read(path), str(path))


def check_classes(params: Params, classes: int) -> None:
    """Raise InputError where one of the attacks cannot attack a net of so many classes."""
    for key, attack in params.library_attacks.items():
        if problem := demands.classes_problem(attack.library_class or AUTOATTACK, attack.arguments, classes):
            mend = "set its images to 0" if key == "whitebox.autoattack" else "use another attack"
            raise InputError(f"{PARAMS_FILE}: {key} is {attack.method}; {problem}; {mend}")


def network(text: str, name: str) -> Network:
    """Parse a network from text: its section as in params.yaml, or its name alone.

    Raises InputError, which begins with `name`, where the text describes no network.
    """
    try:
        value = yaml_value(text)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    return validated(Network, value if isinstance(value, dict) else {"name": value}, name)


def yaml_value(text: str) -> Any:
    """Parse a value of the command line as YAML. Raises ValueError, which quotes the text, where it is none."""
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, UnicodeError) as error:
        raise ValueError(f"{' '.join(text.split())} is not a YAML value") from error


def read(path: str | Path) -> Any:
    """Read a YAML 1.2 file without validation. Raises InputError where it cannot be read."""
    try:
        return YAML(typ="safe").load(Path(path))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; run `python -m sparring profile digits` to make it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (YAMLError, UnicodeDecodeError) as error:
        reason = str(error).split("To suppress this check")[0]
        raise InputError(f"{path} is not YAML: {' '.join(reason.split())}") from error


def validate(values: Any, name: str = PARAMS_FILE) -> Params:
    """Make Params from a plain dictionary. Raises InputError, which begins with `name`, where it is not valid."""
    if not isinstance(values, dict):
        problem = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise InputError(f"{name} {problem}; it needs the sections of profiles/digits.yaml")
    return validated(Params, values, name)
