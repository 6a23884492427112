"""This module defines the arguments of every attack, and an entry of `attacks` in params.yaml."""

import difflib
import inspect
import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from sparring.params import demands
from sparring.params.errors import did_you_mean, first_problem, quoted
from sparring.params.names import AUTOATTACK, SQUARE, check_names
from sparring.params.values import Count, NotNegative, Positive, Radius, Section, Share, fraction, radius


class Gaussian(Section):
    std: Positive


class Fgsm(Section):
    eps: Radius


class RFGSM(Section):
    eps: Radius
    alpha: Positive

    @model_validator(mode="after")
    def _check_alpha(self) -> "RFGSM":
        if self.alpha >= self.eps:
            raise ValueError(
                f"alpha is {self.alpha:g}; it must be below eps, which is {self.eps:g}; half of it is usual"
            )
        return self


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
    gamma: Annotated[float, Field(gt=0, lt=1), BeforeValidator(fraction)]
    start: Positive


class AutoAttack(Section):
    eps: Positive
    norm: Literal["linf", "l2"]


BUILT_IN: dict[str, type[Section]] = {
    "gaussian": Gaussian,
    "fgsm": Fgsm,
    "bim": Bim,
    "deepfool": DeepFool,
    "cw": CW,
    "nst": NST,
    "pgd": PGD,
    "ddn": DDN,
    "rfgsm": RFGSM,
    AUTOATTACK: AutoAttack,
}
TORCHATTACKS = "torchattacks."
APGD, APGD_T, FAB_T = "apgd_ce", "apgd_t", "fab_t"  # These and Square are the parts of AutoAttack.
STEPS, TARGETS, QUERIES = 100, 9, 5000  # of AutoAttack: steps, target classes, and queries of Square
FEWEST_CLASSES = 4  # that APGD-T's loss compares, the targeted difference of logits ratio
# These attacks look for the least change that fools the model, and so stop right behind its decision boundary.
MINIMAL_NORM = {"deepfool", "cw", "ddn"} | {
    TORCHATTACKS + name for name in ("DeepFool", "CW", "SparseFool", "EADL1", "EADEN", "JSMA", "FAB")
}

NOISE = {"gaussian", TORCHATTACKS + "GN"}


def torchattacks_class(method: str) -> type:
    """Return the class that `torchattacks.NAME` names. Raises ValueError where there is none."""
    import torchattacks

    name = method.removeprefix(TORCHATTACKS)
    attack_class = getattr(torchattacks, name, None)
    if not (inspect.isclass(attack_class) and issubclass(attack_class, torchattacks.attack.Attack)):
        close = difflib.get_close_matches(name, dir(torchattacks), 3, 0.5)
        raise ValueError(f"method is {method}; torchattacks has no attack of that name" + did_you_mean(close))
    if name in demands.REFUSED:
        raise ValueError(f"method is {method}; {demands.REFUSED[name]}")
    return attack_class


class Attack(Section):
    """An entry of `attacks` names a method and its arguments."""

    method: str
    arguments: dict[str, Any]

    @property
    def linf(self) -> float | None:
        """Return the L∞ radius as stored, in [0, 1] units: the largest k/255 within eps. None without an L∞ radius."""
        eps = self.arguments.get(self.radius_key)
        return None if eps is None or self._norm() != "linf" else math.floor(255 * float(eps) + 0.001) / 255

    @property
    def l2(self) -> float | None:
        """Return the L2 radius, in [0, 1] units. None without an L2 radius."""
        return float(self.arguments["eps"]) if "eps" in self.arguments and self._norm() == "l2" else None

    @property
    def minimal(self) -> bool:
        """Tell whether the attack looks for the least change, without a radius as its limit."""
        return self.method in MINIMAL_NORM and self.linf is None and self.l2 is None

    @property
    def predictions(self) -> tuple[str, ...]:
        """Return the columns of predictions in the attack's store.

        A minimal-norm attack ends so near a decision boundary that rounding undoes much of it, so its store also has
        the predictions before storage. Those of other attacks differ by rounding at most.
        """
        return ("prediction", *(("prediction_float", "prediction_rounded") if self.minimal else ()))

    @property
    def noise(self) -> bool:
        """Tell whether the attack is mere noise, which is not aimed at the model."""
        return self.method in NOISE

    def run_arguments(self) -> dict[str, Any]:
        """Return the arguments that the attack runs with: those configured, with eps as stored."""
        return self.arguments | ({} if self.linf is None else {self.radius_key: self.linf})

    @property
    def library_class(self) -> str | None:
        """Return the name of the attack's class in torchattacks, or None for an attack of this package."""
        return self.method.removeprefix(TORCHATTACKS) if self.method.startswith(TORCHATTACKS) else None

    @property
    def radius_key(self) -> str:
        """Return the name of the argument that is the attack's radius, if it has one."""
        return "max_epsilon" if "max_epsilon" in self.arguments else "eps"

    def _norm(self) -> str:
        return str(self.arguments.get("norm", "L2" if "L2" in self.method else "Linf")).lower()


def attack_entry(name: str, entry: Any) -> Attack:
    """Make an Attack of an entry of `attacks`. Raises ValueError, beginning with the argument, where it cannot run."""
    if not isinstance(entry, dict):
        raise ValueError(f" is {quoted(entry)}; it needs the attack's arguments, as in {{eps: 0.03}}")
    arguments = dict(entry)
    method = arguments.pop("method", name)
    if isinstance(method, str) and method.startswith(TORCHATTACKS):
        return _storable(_of_torchattacks(method, arguments))
    if not isinstance(method, str) or method not in BUILT_IN:
        close = difflib.get_close_matches(str(method), BUILT_IN, 1)
        mend = did_you_mean(close) if close else f"; use {', '.join(BUILT_IN)} or torchattacks.<Class>"
        raise ValueError(f"method is {quoted(method)}; there is no such attack{mend}")
    return _storable(Attack(method=method, arguments=BUILT_IN[method].model_validate(arguments).model_dump()))


def _of_torchattacks(method: str, arguments: dict[str, Any]) -> Attack:
    accepted = dict(list(inspect.signature(torchattacks_class(method)).parameters.items())[1:])
    for key, value in arguments.items():
        if key not in accepted:
            raise ValueError(f"{key} is not an argument of {method}; it takes {', '.join(accepted) or 'none'}")
        default = accepted[key].default
        if _is_number(default):
            try:
                arguments[key] = fraction(value)
            except ValueError as error:
                raise ValueError(f"{key} is {quoted(value)}; {error}") from error
            if not _is_number(arguments[key]):
                raise ValueError(f"{key} is {quoted(value)}; it is a number, as in {default:g}")
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{key} is {quoted(value)}; it is true or false")
    # The library's defaults become part of the record. The number of classes is the data set's, not a default.
    defaults = {key: parameter.default for key, parameter in accepted.items() if key != "n_classes"}
    attack = Attack(method=method, arguments=defaults | arguments)
    for key, value in attack.arguments.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"{key} is missing; {method} cannot run without it")
    if problem := demands.arguments_problem(str(attack.library_class), attack.arguments):
        raise ValueError(problem)
    return attack


def _storable(attack: Attack) -> Attack:
    key = attack.radius_key
    eps = attack.arguments.get(key, 0.0)
    if not _is_number(eps) or eps < 0:
        raise ValueError(f"{key} is {quoted(eps)}; it is a radius, so a number above 0")
    if attack.linf is not None:
        try:
            radius(eps)
        except ValueError as error:
            raise ValueError(f"{key} is {eps:g}; {error}") from error
    if attack.linf == 0:
        raise ValueError(f"{key} is {eps}; below 1/255 nothing of it survives storage in 8 bits")
    return attack


def torchattacks_entry(name: str, norm: str, **arguments: Any) -> Attack:
    """Return the attack of a class of torchattacks within a ball.  norm: linf | l2, as in this package's attacks."""
    settings = {"method": TORCHATTACKS + name, "norm": {"linf": "Linf", "l2": "L2"}[norm]}
    return attack_entry(name, settings | arguments)


def autoattack_parts(norm: str, eps: float, classes: int) -> dict[str, Attack]:
    """Return the parts of AutoAttack's standard version (Croce and Hein, 2020, arXiv 2003.01690) by name, in its order.

    torchattacks' own AutoAttack makes a tenth of the steps.
    norm: linf | l2.  eps: in [0, 1] units.  classes: with fewer than four, APGD-T is left out, as its loss needs four.
    """
    targets = min(TARGETS, classes - 1)
    steps = {"eps": eps, "steps": STEPS, "n_restarts": 1}
    parts = {
        APGD: torchattacks_entry("APGD", norm, **steps, loss="ce"),
        APGD_T: torchattacks_entry("APGDT", norm, **steps, n_classes=targets + 1),
        FAB_T: torchattacks_entry("FAB", norm, **steps, multi_targeted=True, n_classes=targets + 1),
        SQUARE: torchattacks_entry("Square", norm, eps=eps, n_queries=QUERIES, resc_schedule=False),
    }
    return {name: part for name, part in parts.items() if classes >= FEWEST_CLASSES or name != APGD_T}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def attack_entries(entries: Any, reserved: tuple[str, ...]) -> Any:
    """Make the attacks of a section, by name. Raises ValueError, beginning with the name of the wrong one."""
    if not isinstance(entries, dict):
        return entries
    check_names(entries, reserved)
    attacks = {}
    for name, entry in entries.items():
        try:
            attacks[name] = attack_entry(str(name), entry)
        except ValidationError as error:
            raise ValueError(f".{name}.{first_problem(error, BUILT_IN[entry.get('method', name)])}") from error
        except ValueError as error:
            raise ValueError(f".{name}{'' if str(error).startswith(' ') else '.'}{error}") from error
    return attacks
