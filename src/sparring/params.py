"""params.yaml as typed, validated models: the one place that knows every key.

Every key is required: what a run did can be read off its params.yaml without knowing any default.
"""

import difflib
import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from PIL import ImageColor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sparring import demands

PARAMS_FILE = "params.yaml"
ABLATION_FILE = "ablation/params.yaml"
BASELINE = "baseline"
ABLATED = "ours"  # the structure that Table 3 varies
CLEAN = "clean"
# The white-box attacks that `whitebox` describes by numbers, by their names in data/whitebox/.
AUTOATTACK, MORE_STEPS, SQUARE = "autoattack", "more_steps", "square"
KNOWN_DETECTORS = ("mahalanobis", "squeezing")  # to which a structure's own is compared
MIXTURE = "mixture"  # stands where else an attack's name stands
# Of the report's tables, beside a column for each structure.
TABLE_COLUMNS = ("structure", "attack", "images", "within", "check", "compared", "corruption")
SPLITS = ("train", "validation", "test", "heldout")
EVALUATED_SPLITS = ("test", "heldout")
CORRUPTIONS = ("noise", "blur", "brightness", "contrast", "jpeg", "pixelate")
STRENGTHS = (1, 2, 3, 4, 5)


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


def root() -> Path:
    """The main repository, also from the copy below .dvc/tmp in which DVC runs queued experiments."""
    here = Path.cwd()
    for folder in here.parents:
        if folder.name == ".dvc" and (folder / "config").exists():
            return folder.parent
    return here


def outputs(classes: list[str]) -> str:
    """Which output of a classifier is which class, as `0 cat, 1 dog`; of more than twelve, ten and the last."""
    numbered = [f"{number} {name}" for number, name in enumerate(classes)]
    return ", ".join(numbered if len(numbered) <= 12 else [*numbered[:10], "…", numbered[-1]])


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError("it is a share, so 0 to 1")
    return value


def _fraction(value: Any) -> Any:
    """8/255 for "8/255"; anything else as it is."""
    if not isinstance(value, str) or "/" not in value:
        return value
    parts = re.fullmatch(r"\s*([-+]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*", value)
    if parts is None:
        raise ValueError("it is neither a number nor a fraction such as 8/255")
    above, below = map(float, parts.groups())
    if below == 0:
        raise ValueError("it divides by 0; write a fraction such as 8/255")
    return above / below


def _radius(value: float) -> float:
    if not 0 <= value <= 1:
        mend = f"; {value:g}/255 is {value / 255:.3g}" if 1 < value <= 255 else ""
        raise ValueError(f"an L∞ radius is a share of the pixel range, so 0 to 1{mend}")
    return value


# Every number but a count may be written as a fraction.
Share = Annotated[float, AfterValidator(_share), BeforeValidator(_fraction)]
BelowOne = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_fraction)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_fraction)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_fraction)]
Radius = Annotated[float, Field(gt=0), AfterValidator(_radius), BeforeValidator(_fraction)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]


Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Section):
    source: Literal["digits", "cifar10", "parquet", "folder"]
    path: str | None
    group_pattern: str | None
    background: str
    image_size: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    train: Count
    validation: CountOrNone
    test: CountOrNone
    heldout: CountOrNone

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"it is not a regular expression ({error})") from error
            if groups != 1:
                raise ValueError("it needs exactly one (…) that captures the name of the group")
        return pattern

    @field_validator("background")
    @classmethod
    def _is_opaque(cls, colour: str) -> str:
        try:
            channels = ImageColor.getrgb(colour)
        except ValueError as error:
            raise ValueError(f"{_shown(colour)} is no colour; use a name like white, or '#rrggbb'") from error
        if len(channels) != 3:
            raise ValueError(f"{_shown(colour)} is transparent itself; leave its last part out")
        return colour

    @model_validator(mode="after")
    def _has_path(self) -> "Data":
        if self.source in ("parquet", "folder") and not self.path:
            raise ValueError(f"path is missing; data.source {self.source} reads the files that data.path names")
        return self


class Store(Section):
    shard_size: Count
    batch_size: Count
    dtype: Literal["uint8", "float16"]
    faithful: bool
    margin: NotNegative
    memory_budget: Positive

    @model_validator(mode="after")
    def _batches_fill_shards(self) -> "Store":
        # Attack and evaluation must predict the same images together: a batch of another size rounds differently.
        if self.shard_size % self.batch_size:
            raise ValueError(f"batch_size is {self.batch_size}; it must divide shard_size, which is {self.shard_size}")
        return self


RESNET = "resnet"


class Network(Section):
    """Our ResNet for small images, of `blocks` and `width`; or any classifier of torchvision, by its name alone."""

    name: str
    blocks: Annotated[list[Count], Field(min_length=4, max_length=4)] | None = None
    width: Count | None = None

    @model_validator(mode="after")
    def _exists(self) -> "Network":
        if self.name != RESNET and self.name not in (known := torchvision_names()):
            close = difflib.get_close_matches(self.name, known, 2)
            raise ValueError(
                f"name is {_shown(self.name)}; use {RESNET} or a classifier of torchvision"
                + (f"; did you mean {' or '.join(close)}?" if close else f", such as {', '.join(known[:3])}")
            )
        for key in ("blocks", "width"):
            given = getattr(self, key)
            if self.name == RESNET and given is None:
                raise ValueError(f"{key} is missing; add it (profiles/digits.yaml has every key, with its meaning)")
            if self.name != RESNET and given is not None:
                raise ValueError(f"{key} is {_shown(given)}; only {RESNET} has it: network is {{name: {self.name}}}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_it_has_not(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}

    @property
    def words(self) -> str:
        """It, for the reader of a report."""
        if self.blocks is None:
            return f"torchvision's {self.name}"
        return f"a ResNet of {' + '.join(map(str, self.blocks))} blocks and width {self.width}"


def torchvision_names() -> list[str]:
    """The classifiers that torchvision can make."""
    # Imported here, as loading it takes longer than checking all else, and our ResNet needs none of it.
    from torchvision import models

    return models.list_models(module=models)


class Training(Section):
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    momentum: Share
    weight_decay: NotNegative
    crop_area: Annotated[list[Share], Field(min_length=2, max_length=2)]
    horizontal_flip: bool
    label_smoothing: BelowOne
    ema: BelowOne
    keep: Literal["last", "best"]
    devices: int | Literal["auto"]

    @field_validator("devices", mode="before")
    @classmethod
    def _is_devices(cls, devices: Any) -> Any:
        if devices != "auto" and (not isinstance(devices, int) or isinstance(devices, bool) or devices < 1):
            raise ValueError("use auto or a number of devices, 1 or more")
        return devices

    @field_validator("crop_area")
    @classmethod
    def _is_range(cls, area: list[float]) -> list[float]:
        if not 0 < area[0] <= area[1]:
            raise ValueError("it is [smallest, largest] share of the image, both above 0")
        return area


class Sampler(Section):
    adv_ratio: Share
    range: Share
    redraw: Literal["epoch", "batch"]
    weights: dict[str, NotNegative]

    @model_validator(mode="after")
    def _range_fits(self) -> "Sampler":
        if self.adv_ratio - self.range < -1e-9 or self.adv_ratio + self.range > 1 + 1e-9:
            raise ValueError(
                f"range is {self.range}; adv_ratio {self.adv_ratio} ± range must stay within 0 to 1, "
                f"so at most {min(self.adv_ratio, 1 - self.adv_ratio):g}"
            )
        return self


class Detector(Section):
    input: Literal["full", "low"]
    layers: Count
    tokens: Literal["auto", "channel", "position"]
    centre: Literal["layer1", "layer2", "layer3", "layer4"]
    dropout: BelowOne
    alpha: NotNegative
    beta: NotNegative
    order: Literal["before", "after"]
    learning_rate: Positive


class Online(Section):
    eps: Radius
    step: Positive
    steps: Count


class Structure(Section):
    opponents: Literal["sampler", "fixed", "online_fgsm", "online_pgd", "none"]
    detector: Literal["detector", "none"]

    @property
    def stored(self) -> bool:
        """Whether it trains on the stored attacks."""
        return self.opponents in ("sampler", "fixed")

    @property
    def online(self) -> bool:
        """Whether its opponents are made on the fly, with the settings of the section that they are named after."""
        return self.opponents in ("online_fgsm", "online_pgd")

    @model_validator(mode="after")
    def _has_opponents(self) -> "Structure":
        if self.detector != "none" and self.opponents == "none":
            raise ValueError("detector needs adversarial images to learn from; name its opponents: sampler or fixed")
        if self.detector != "none" and self.online:
            raise ValueError(
                f"detector has no clean images to learn from, as {self.opponents} attacks every image; use none, or "
                "sampler or fixed as opponents"
            )
        return self


class Mixture(Section):
    adv_ratio: Share


class Detection(Section):
    images: Count
    eps: Radius
    steps: Count


class Gaussian(Section):
    std: Positive


class Fgsm(Section):
    eps: Radius


class Bim(Section):
    eps: Radius
    step: Positive
    first_step: Positive
    steps: Count


class DeepFool(Section):
    steps: Count
    overshoot: NotNegative


class CW(Section):
    c: Positive
    kappa: NotNegative
    steps: Count
    learning_rate: Positive
    search_steps: Count


class NST(Section):
    steps: Count
    learning_rate: Positive
    momentum: Share
    weight_decay: NotNegative
    style: Literal["maps", "gram"]


class PGD(Section):
    eps: Positive
    step: Positive
    steps: Count
    norm: Literal["linf", "l2"]
    restarts: Count
    loss: Literal["cross_entropy", "margin"]


class DDN(Section):
    steps: Count
    gamma: Annotated[float, Field(gt=0, lt=1), BeforeValidator(_fraction)]
    start: Positive


BUILT_IN: dict[str, type[Section]] = {
    "gaussian": Gaussian,
    "fgsm": Fgsm,
    "bim": Bim,
    "deepfool": DeepFool,
    "cw": CW,
    "nst": NST,
    "pgd": PGD,
    "ddn": DDN,
}
TORCHATTACKS = "torchattacks."
# They look for the least change that fools the model, and so stop right behind its boundary.
MINIMAL_NORM = {"deepfool", "cw", "ddn"} | {
    TORCHATTACKS + name for name in ("DeepFool", "CW", "SparseFool", "EADL1", "EADEN", "JSMA", "FAB")
}

NOISE = {"gaussian", TORCHATTACKS + "GN"}


def torchattacks_class(method: str) -> type:
    """The class that `torchattacks.NAME` names; ValueError where there is none."""
    import torchattacks

    name = method.removeprefix(TORCHATTACKS)
    found = getattr(torchattacks, name, None)
    if not (inspect.isclass(found) and issubclass(found, torchattacks.attack.Attack)):
        close = difflib.get_close_matches(name, dir(torchattacks), 3, 0.5)
        raise ValueError(f"method is {method}; torchattacks has no attack of that name" + _did_you_mean(close))
    if name in demands.REFUSED:
        raise ValueError(f"method is {method}; {demands.REFUSED[name]}")
    return found


class Attack(Section):
    """One entry of `attacks`: which method runs, with which arguments."""

    method: str
    arguments: dict[str, Any]

    @property
    def linf(self) -> float | None:
        """The L∞ radius, in [0, 1] units, as stored: the largest k/255 within eps. None for an attack without one."""
        eps = self.arguments.get(self.radius_key)
        return None if eps is None or self._norm() != "linf" else math.floor(255 * float(eps) + 0.001) / 255

    @property
    def l2(self) -> float | None:
        """The L2 radius, in [0, 1] units; None for an attack without one."""
        return float(self.arguments["eps"]) if "eps" in self.arguments and self._norm() == "l2" else None

    @property
    def minimal(self) -> bool:
        """Whether it looks for the least change, without a radius to keep."""
        return self.method in MINIMAL_NORM and self.linf is None and self.l2 is None

    @property
    def noise(self) -> bool:
        """Whether it is mere noise, which aims at nothing."""
        return self.method in NOISE

    def stored(self) -> dict[str, Any]:
        """The arguments that the attack runs with: as configured, but eps as stored."""
        return self.arguments | ({} if self.linf is None else {self.radius_key: self.linf})

    @property
    def of_library(self) -> str | None:
        """The name of its class in torchattacks; None for one of ours."""
        return self.method.removeprefix(TORCHATTACKS) if self.method.startswith(TORCHATTACKS) else None

    @property
    def radius_key(self) -> str:
        """The argument that is its radius, where it has one."""
        return "max_epsilon" if "max_epsilon" in self.arguments else "eps"

    def _norm(self) -> str:
        return str(self.arguments.get("norm", "L2" if "L2" in self.method else "Linf")).lower()


def _attack(name: str, entry: Any) -> Attack:
    if not isinstance(entry, dict):
        raise ValueError(f" is {_shown(entry)}; it needs the attack's arguments, as in {{eps: 0.03}}")
    arguments = dict(entry)
    method = arguments.pop("method", name)
    if isinstance(method, str) and method.startswith(TORCHATTACKS):
        return _storable(_of_torchattacks(method, arguments))
    if not isinstance(method, str) or method not in BUILT_IN:
        known = ", ".join(BUILT_IN)
        raise ValueError(f"method is {_shown(method)}; there is no such attack; use {known} or torchattacks.<Class>")
    return _storable(Attack(method=method, arguments=BUILT_IN[method].model_validate(arguments).model_dump()))


def _of_torchattacks(method: str, arguments: dict[str, Any]) -> Attack:
    accepted = dict(list(inspect.signature(torchattacks_class(method)).parameters.items())[1:])
    for key, value in arguments.items():
        if key not in accepted:
            raise ValueError(f"{key} is not an argument of {method}; it takes {', '.join(accepted) or 'none'}")
        default = accepted[key].default
        if _is_number(default):
            try:
                arguments[key] = _fraction(value)
            except ValueError as error:
                raise ValueError(f"{key} is {_shown(value)}; {error}") from error
            if not _is_number(arguments[key]):
                raise ValueError(f"{key} is {_shown(value)}; it is a number, as in {default:g}")
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{key} is {_shown(value)}; it is true or false")
    # The library's defaults become part of the record; the number of classes is the data set's, not a default.
    defaults = {key: found.default for key, found in accepted.items() if key != "n_classes"}
    attack = Attack(method=method, arguments=defaults | arguments)
    for key, value in attack.arguments.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"{key} is missing; {method} cannot run without it")
    if problem := demands.of_arguments(str(attack.of_library), attack.arguments):
        raise ValueError(problem)
    return attack


def _storable(attack: Attack) -> Attack:
    key = attack.radius_key
    eps = attack.arguments.get(key, 0.0)
    if not _is_number(eps) or eps < 0:
        raise ValueError(f"{key} is {_shown(eps)}; it is a radius, so a number above 0")
    if attack.linf is not None:
        try:
            _radius(eps)
        except ValueError as error:
            raise ValueError(f"{key} is {eps:g}; {error}") from error
    if attack.linf == 0:
        raise ValueError(f"{key} is {eps}; below 1/255 nothing of it survives storage in 8 bits")
    return attack


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


LONGEST_NAME = 100


def _names(entries: dict[str, Any], reserved: tuple[str, ...]) -> None:
    for name in entries:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(name)) or name in reserved:
            raise ValueError(f"{name} cannot be a name here; use letters, digits, - and _, not {', '.join(reserved)}")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{name[:20]}… has {len(name)} characters; files bear such names, so use {LONGEST_NAME}")


def _attacks(entries: Any, reserved: tuple[str, ...]) -> Any:
    """The attacks of a section, by name; ValueError begins with the name of the one that is wrong."""
    if not isinstance(entries, dict):
        return entries
    _names(entries, reserved)
    attacks = {}
    for name, entry in entries.items():
        try:
            attacks[name] = _attack(str(name), entry)
        except ValidationError as error:
            raise ValueError(f".{name}.{_first(error)}") from error
        except ValueError as error:
            raise ValueError(f".{name}{'' if str(error).startswith(' ') else '.'}{error}") from error
    return attacks


class AutoAttack(Section):
    images: CountOrNone
    eps: Radius

    @field_validator("eps")
    @classmethod
    def _survives(cls, eps: float) -> float:
        if eps < 1 / 255 - 1e-6:
            raise ValueError("below 1/255 nothing of it survives storage in 8 bits")
        return eps


class Checks(Section):
    images: CountOrNone
    steps: Count
    queries: Count


class Curve(Section):
    images: CountOrNone
    eps: Annotated[list[Annotated[int, Field(ge=1, le=255)]], Field(min_length=1)]

    @field_validator("eps")
    @classmethod
    def _ends_where_nothing_is_left(cls, eps: list[int]) -> list[int]:
        if eps != sorted(set(eps)) or eps[-1] < 128:
            raise ValueError("it is radii in 1/255 that rise to 128 at least, at which any image can be made grey")
        return eps


class Whitebox(Section):
    images: CountOrNone
    attacks: dict[str, Attack]
    autoattack: AutoAttack
    checks: Checks
    curve: Curve

    @field_validator("attacks", mode="before")
    @classmethod
    def _attacks(cls, entries: Any) -> Any:
        return _attacks(entries, (CLEAN, AUTOATTACK, MORE_STEPS, SQUARE))

    @model_validator(mode="after")
    def _has_reference(self) -> "Whitebox":
        found = [name for name, attack in self.attacks.items() if attack.method == "pgd" and attack.linf is not None]
        if not found:
            raise ValueError("attacks has no pgd with norm linf, from which the checks and the curve are made; add one")
        steps = self.attacks[found[0]].arguments["steps"]
        if self.checks.steps <= steps:
            raise ValueError(
                f"checks.steps is {self.checks.steps}; it must be more than attacks.{found[0]} has, which is {steps}"
            )
        return self

    @property
    def reference(self) -> str:
        """The first PGD in L∞ among `attacks`: the checks and the curve vary its steps and its radius."""
        return next(name for name, attack in self.attacks.items() if attack.method == "pgd" and attack.linf is not None)

    @property
    def on_curve(self) -> dict[str, Attack]:
        """The reference at each radius of the curve, its step in the same proportion, by name in data/whitebox/."""
        settings = self.attacks[self.reference].arguments
        share = settings["step"] / settings["eps"]
        return {
            f"eps={level}/255": Attack(
                method="pgd", arguments=settings | {"eps": level / 255, "step": share * level / 255}
            )
            for level in self.curve.eps
        }

    @property
    def runs(self) -> dict[str, tuple[Attack, int]]:
        """Every attack that is run, by name in data/whitebox/, and how many images it meets at most."""
        reference = self.attacks[self.reference]
        square = {"norm": "Linf", "eps": reference.linf, "n_queries": self.checks.queries}
        auto = {"norm": "Linf", "eps": self.autoattack.eps, "version": "standard", "seed": None}
        longer = reference.arguments | {"steps": self.checks.steps}
        found = {name: (attack, self.images) for name, attack in self.attacks.items()}
        found[AUTOATTACK] = Attack(method=f"{TORCHATTACKS}AutoAttack", arguments=auto), self.autoattack.images
        found[MORE_STEPS] = Attack(method="pgd", arguments=longer), self.checks.images
        found[SQUARE] = Attack(method=f"{TORCHATTACKS}Square", arguments=square), self.checks.images
        found |= {name: (attack, self.curve.images) for name, attack in self.on_curve.items()}
        limited = {name: (attack, min(count, self.images)) for name, (attack, count) in found.items()}
        return {name: run for name, run in limited.items() if run[1]}


class Params(Section):
    seed: CountOrNone
    seeds: Annotated[list[CountOrNone], Field(min_length=1)]
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
    detector: Detector
    none: dict[str, Any]
    structures: dict[str, Structure]
    mixture: Mixture
    whitebox: Whitebox
    detection: Detection

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("use auto, cpu, cuda or cuda:<number>")
        return device

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("name each seed once")
        return seeds

    @field_validator("attacks", "unseen_attacks", mode="before")
    @classmethod
    def _attacks(cls, entries: Any) -> Any:
        return _attacks(entries, (CLEAN, MIXTURE))

    @field_validator("structures")
    @classmethod
    def _structures(cls, structures: dict[str, Structure]) -> dict[str, Structure]:
        _names(structures, (BASELINE, "pretrained", *KNOWN_DETECTORS, *TABLE_COLUMNS))
        return structures

    @model_validator(mode="after")
    def _agree(self) -> "Params":
        if not self.attacks:
            raise ValueError("attacks is empty; name at least one")
        if self.training.keep == "best" and self.data.validation == 0:
            raise ValueError(
                "training.keep is best, but data.validation is 0; give it images to choose by, or use last"
            )
        for name in self.unseen_attacks:
            if name in self.attacks:
                raise ValueError(f"unseen_attacks.{name} is also in attacks; an unseen attack needs a name of its own")
        for section in ("sampler", "fixed"):
            weights = getattr(self, section).weights
            for name in weights:
                if name not in self.attacks:
                    raise ValueError(f"{section}.weights.{name} is not in attacks; use {', '.join(self.attacks)}")
            if not any(weights.get(name, 1) for name in self.attacks):
                raise ValueError(f"{section}.weights are all 0; give at least one attack a weight above 0")
        for key, attack in self.of_library.items():
            if problem := demands.of_image_size(str(attack.of_library), attack.arguments, self.data.image_size):
                raise ValueError(f"{key} is {attack.method}; {problem}")
        return self

    @property
    def of_library(self) -> dict[str, Attack]:
        """Every attack of torchattacks that is run, by its key in params.yaml."""
        attacks = [*self.attacks.items(), *self.unseen_attacks.items()]
        attacks += [(name, attack) for name, (attack, _) in self.whitebox.runs.items()]
        return {self.key(name, attack): attack for name, attack in attacks if attack.of_library}

    def key(self, name: str, attack: Attack) -> str:
        """Where params.yaml describes an attack that is run under a name."""
        sections = {"attacks": self.attacks, "unseen_attacks": self.unseen_attacks}
        for section, entries in (sections | {"whitebox.attacks": self.whitebox.attacks}).items():
            if entries.get(name) == attack:
                return f"{section}.{name}"
        return "whitebox.autoattack" if name == AUTOATTACK else "whitebox.checks"


class Row(Section):
    """What a row of Table 3 changes in params.yaml."""

    input: Literal["full", "low"]
    adv_ratio: Share
    layers: Count


class Ablation(Section):
    rows: Annotated[dict[str, Row], Field(min_length=1)]

    @field_validator("rows")
    @classmethod
    def _rows(cls, rows: dict[str, Row]) -> dict[str, Row]:
        _names(rows, ())
        return rows


def load(path: str | Path = PARAMS_FILE) -> Params:
    """Read and validate a parameter file, the way DVC reads it (YAML 1.2).

    Raises InputError, in one line, for a file that is missing, is not YAML, or has an unknown,
    missing or impossible key.
    """
    return validate(read(path), str(path))


def check_classes(params: Params, classes: int) -> None:
    """Raises InputError where one of the attacks cannot attack a net of so many classes."""
    for key, attack in params.of_library.items():
        if problem := demands.of_classes(str(attack.of_library), attack.arguments, classes):
            mend = "set its images to 0" if key == "whitebox.autoattack" else "use another attack"
            raise InputError(f"{PARAMS_FILE}: {key} is {attack.method}; {problem}; {mend}")


def load_rows(path: str | Path = ABLATION_FILE) -> dict[str, Row]:
    """The rows of Table 3, by name; InputError in one line as for `load`."""
    return _validated(Ablation, read(path), str(path)).rows


def row_params(params: Params, name: str, rows: dict[str, Row]) -> Params:
    """`params` with the detector and the adversarial share of a row of Table 3; its one structure is ABLATED.

    Raises InputError for a row that there is not, or whose share does not go with the sampler's range.
    """
    if name not in rows:
        raise InputError(f"{ABLATION_FILE}: rows.{name} is missing; there are {', '.join(rows)}")
    row = rows[name]
    detector = params.detector.model_copy(update={"input": row.input, "layers": row.layers})
    try:
        sampler = Sampler.model_validate(params.sampler.model_dump() | {"adv_ratio": row.adv_ratio})
    except ValidationError as error:
        raise InputError(
            f"{ABLATION_FILE}: rows.{name} does not go with {PARAMS_FILE}: sampler.{_first(error)}"
        ) from error
    ours = Structure(opponents="sampler", detector="detector")
    changes = {"detector": detector, "sampler": sampler, "structures": {ABLATED: ours}, "unseen_attacks": {}}
    return params.model_copy(update=changes)


def without(params: Params, attack: str) -> Params:
    """`params` for training without one attack: it is in no list, and the structures are those that train on stored
    attacks. Raises InputError where there is no such attack, no other one that is drawn, or no such structure.
    """
    structures = only(params, attack).structures
    left = {name: entry for name, entry in params.attacks.items() if name != attack}
    changes: dict[str, Any] = {"attacks": left, "structures": structures}
    for section in {structure.opponents for structure in structures.values()}:
        settings = getattr(params, section)
        weights = {name: weight for name, weight in settings.weights.items() if name != attack}
        if not any(weights.get(name, 1) for name in left):
            raise InputError(f"{PARAMS_FILE}: {section} draws no attack but {attack}; leaving it out leaves none")
        changes[section] = settings.model_copy(update={"weights": weights})
    return params.model_copy(update=changes)


def only(params: Params, attack: str) -> Params:
    """`params` for evaluating the structures that train on stored attacks under one attack; InputError as `without`."""
    if attack not in params.attacks:
        raise InputError(f"{PARAMS_FILE}: attacks.{attack} is missing; there are {', '.join(params.attacks)}")
    stored = {name: structure for name, structure in params.structures.items() if structure.stored}
    if not stored:
        raise InputError(f"{PARAMS_FILE}: structures has none that trains on stored attacks, so none can be left out")
    changes = {"attacks": {attack: params.attacks[attack]}, "unseen_attacks": {}, "structures": stored}
    return params.model_copy(update=changes)


def network(text: str, name: str) -> Network:
    """A network as params.yaml has it, or its name alone, from text; InputError begins with `name`."""
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise InputError(f"{name}: {' '.join(text.split())} is not a YAML value") from error
    return _validated(Network, value if isinstance(value, dict) else {"name": value}, name)


def read(path: str | Path) -> Any:
    """What a YAML 1.2 file holds, not validated; InputError where it cannot be read."""
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
    """Params from a plain dictionary; InputError begins with `name`."""
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise InputError(f"{name} {found}; it needs the sections of profiles/digits.yaml")
    return _validated(Params, values, name)


def _validated(model: type[Model], values: Any, name: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        more = f" ({error.error_count() - 1} more after this)" if error.error_count() > 1 else ""
        raise InputError(f"{name}: {_first(error)}{more}") from error


def _first(error: ValidationError) -> str:
    # An unknown key before a missing one: a misspelt key is both.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    kind, value, message = problem["type"], problem["input"], problem["msg"]
    if kind == "extra_forbidden":
        known = _fields(error.title, problem["loc"])
        return f"{key} is not a key{_did_you_mean(difflib.get_close_matches(key.split('.')[-1], known, 1))}"
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
    return f"{key} is {_shown(value)}; {message.replace('Input should', 'it should')}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _fields(title: str, location: tuple[Any, ...]) -> Iterator[str] | list[str]:
    model: Any = {**{cls.__name__: cls for cls in BUILT_IN.values()}, "Ablation": Ablation, "Network": Network}.get(
        title, Params
    )
    named = Row if model is Ablation else Structure
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else named
    return list(getattr(model, "model_fields", {}))


def _did_you_mean(close: list[str]) -> str:
    return f"; did you mean {' or '.join(close)}?" if close else "; profiles/digits.yaml lists the known ones"
