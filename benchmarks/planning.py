"""The plan of benchmarks/full_size.py: what fits into so many seconds on a machine of these rates.

Nothing here runs a model, so the plan for a machine can be computed on another one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sparring.params import PLAIN_PASSES, Params
from sparring.params.attacks import Attack
from sparring.params.names import EVALUATED_SPLITS, EVOLVING

LEAST_EPOCHS = 8
LEAST_CW_STEPS = 20
LEAST_WHITEBOX = 50  # images; a fifth of them for the sanity checks and the curve, a tenth for AutoAttack
# Of the time that the least of everything leaves, what goes to C&W's steps and to white-box images; epochs get the rest
CW_SHARE, WHITEBOX_SHARE = 0.15, 0.25
RESERVE = 0.1  # of the time is planned for nothing, as the rest may take longer than it was measured
STARTS = 2  # processes, one after another, whose start each part waits for
REPORT = 25.0  # seconds that the report is given at least
BENCHMARK = 30.0  # seconds for the benchmarks' rows
AUTOATTACK_PASSES = 3000  # of gradients for an image that withstands it, by its own steps, restarts and targets
FORWARD = 1 / 3  # of a gradient pass: what a query costs
# In this order parts are left out where time is short, after white-box images were halved down to their least.
OPTIONAL = ("corruptions", "benchmark", "detect", "whitebox")
# In this order they run.
PARTS = (
    "prepare",
    "measure",
    "pretrain",
    "attacks",
    "train",
    "evaluate",
    "whitebox",
    "detect",
    "corruptions",
    "benchmark",
    "report",
)


@dataclass(frozen=True)
class Rates:
    """What a machine does, in images a second unless said otherwise.

    source: where the figures come from.  at_once: tasks that a GPU has room for side by side; 1 on a CPU.
    steps: by batch size, of `adv` (plain training, the pretrained net's too), `ours`, and `evolving` without detector.
    attacks: by name, `attack` and `store`; C&W's attack for 100 steps.
    gradients, predict: gradients and predictions of single images, in float32.
    prepare: images decoded and stored.  start: seconds until a process computes.
    beside: how much faster several attacks or evaluations are side by side than one after another.
    """

    source: str
    at_once: int
    steps: dict[str, dict[str, float]]
    attacks: dict[str, dict[str, float]]
    gradients: float
    predict: float
    prepare: float
    start: float
    beside: float


@dataclass(frozen=True)
class Plan:
    """epochs: of every training.  learning_rate: factor on the parameters' rates, in proportion to the batch (Goyal et
    al., 2017, arXiv 1706.02677).  parts: seconds that each takes, in their order."""

    epochs: int
    batch_size: int
    learning_rate: float
    cw_steps: int
    whitebox_images: int
    parts: dict[str, float]
    left_out: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def settings(self, params: Params) -> list[str]:
        """What it changes in the parameters, as KEY=VALUE."""
        whitebox = self.applied(params).whitebox
        changes: dict[str, Any] = {
            "training.epochs": self.epochs,
            "training.batch_size": self.batch_size,
            "training.learning_rate": round(params.training.learning_rate * self.learning_rate, 6),
            "detector.learning_rate": round(params.detector.learning_rate * self.learning_rate, 6),
            "whitebox.images": whitebox.images,
            "whitebox.checks.images": whitebox.checks.images,
            "whitebox.curve.images": whitebox.curve.images,
            "whitebox.autoattack.images": whitebox.autoattack.images,
            "detection.images": min(params.detection.images, whitebox.images),
        }
        changes |= {f"{section}.cw.steps": self.cw_steps for section in self._with_cw(params)}
        if self.epochs < params.training.epochs:  # too few for a constant rate
            changes["training.schedule"] = "one_cycle"
        return [f"{key}={value}" for key, value in changes.items()]

    @staticmethod
    def _with_cw(params: Params) -> list[str]:
        sections = {"attacks": params.attacks, "whitebox.attacks": params.whitebox.attacks}
        return [name for name, attacks in sections.items() if "cw" in attacks]

    def applied(self, params: Params) -> Params:
        """The parameters with as many white-box images."""
        images, fewer = self.whitebox_images, max(1, self.whitebox_images // 5)
        whitebox = params.whitebox
        changes: dict[str, Any] = {"images": images}
        for name, count in (("checks", fewer), ("curve", fewer), ("autoattack", images // 10)):
            changes[name] = getattr(whitebox, name).model_copy(update={"images": count})
        return params.model_copy(update={"whitebox": whitebox.model_copy(update=changes)})

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds}


def plan(rates: Rates, params: Params, seconds: float, parts: Sequence[str] = PARTS) -> Plan:
    """The largest run of these parameters whose `parts` fit into `seconds`, but for RESERVE of them.

    It starts from the least of everything, without the parts that do not fit even so. What time is left then goes to
    C&W's steps, white-box images and epochs, none beyond what the parameters ask for.
    """
    seconds *= 1 - RESERVE
    asked = params.training.batch_size
    size = int(max(rates.steps, key=lambda size: 1 / sum(1 / rate for rate in rates.steps[size].values())))
    steps = params.attacks["cw"].arguments["steps"] if "cw" in params.attacks else LEAST_CW_STEPS
    least = Plan(
        epochs=min(LEAST_EPOCHS, params.training.epochs),
        batch_size=size,
        learning_rate=size / asked,
        cw_steps=min(LEAST_CW_STEPS, steps),
        whitebox_images=min(LEAST_WHITEBOX, params.whitebox.images),
        parts={},
    )
    chosen = shrunk(least, rates, params, seconds, parts)
    spare = max(0.0, seconds - chosen.seconds)
    chosen = _grown(chosen, "cw_steps", steps, rates, params, chosen.seconds + CW_SHARE * spare)
    if "whitebox" in chosen.parts:
        most = params.whitebox.images
        chosen = _grown(chosen, "whitebox_images", most, rates, params, chosen.seconds + WHITEBOX_SHARE * spare)
    return _grown(chosen, "epochs", params.training.epochs, rates, params, seconds)


def shrunk(chosen: Plan, rates: Rates, params: Params, seconds: float, parts: Sequence[str]) -> Plan:
    """`chosen` for these parts alone, with so few white-box images, and without so many parts, that it fits."""
    chosen = _timed(chosen, rates, params, [name for name in parts if name not in chosen.left_out])
    while chosen.seconds > seconds and "whitebox" in chosen.parts and chosen.whitebox_images > LEAST_WHITEBOX:
        fewer = replace(chosen, whitebox_images=max(LEAST_WHITEBOX, chosen.whitebox_images // 2))
        chosen = _timed(fewer, rates, params, chosen.parts)
    for name in OPTIONAL:
        if chosen.seconds > seconds and name in chosen.parts:
            kept = {part: cost for part, cost in chosen.parts.items() if part != name}
            chosen = replace(chosen, parts=kept, left_out=[*chosen.left_out, name])
    return chosen


def _grown(chosen: Plan, name: str, most: int, rates: Rates, params: Params, seconds: float) -> Plan:
    """`chosen` with the largest value of one field with which all fits into `seconds`, but no smaller than it is."""
    low, high = getattr(chosen, name), most
    while low < high:
        middle = (low + high + 1) // 2
        fits = _timed(replace(chosen, **{name: middle}), rates, params, chosen.parts).seconds <= seconds
        low, high = (middle, high) if fits else (low, middle - 1)
    return _timed(replace(chosen, **{name: low}), rates, params, chosen.parts)


def _timed(chosen: Plan, rates: Rates, params: Params, parts: Iterable[str]) -> Plan:
    costs = seconds_of(chosen, rates, params)
    return replace(chosen, parts={name: costs[name] for name in parts})


def seconds_of(chosen: Plan, rates: Rates, params: Params) -> dict[str, float]:
    """What each part takes, in the order in which they run."""
    data, step = params.data, rates.steps[str(chosen.batch_size)]
    images = data.train + data.validation + data.test + data.heldout
    shown = sum(int(getattr(data, split)) for split in EVALUATED_SPLITS)
    structures = len(params.structures)
    training = chosen.epochs * data.train
    with_detector = [name for name, structure in params.structures.items() if structure.detector != "none"]
    each = [images * _per_image(name, attack, chosen, rates) for name, attack in params.attacks.items()]
    versions = 1 + len(params.attacks)
    aimed = chosen.whitebox_images * whitebox_passes(params, chosen.cw_steps) / rates.gradients
    starts = STARTS * rates.start
    return {
        "prepare": rates.start + images / rates.prepare,
        "measure": rates.start + 10,
        "pretrain": rates.start + training / step["adv"],
        "attacks": starts + max([sum(each) / rates.beside, *each]),
        "train": rates.start + sum(training * _per_visit(params, name, step) for name in params.trained),
        "evaluate": starts + structures * shown * versions / rates.predict / rates.beside,
        "whitebox": starts + structures * aimed / rates.beside,
        # Each image passes the net as it is and squeezed in two ways, and the net under the detector.
        "detect": rates.start + len(with_detector) * shown * (versions + 3) * 4 / rates.predict,
        "corruptions": starts + structures * data.heldout * 31 / rates.predict / rates.beside,
        "benchmark": rates.start + BENCHMARK,
        "report": rates.start + REPORT,
    }


def _per_visit(params: Params, name: str, step: Mapping[str, float]) -> float:
    """Seconds for learning from one image.  step: images a second, by kind of structure."""
    structure = params.structures[name]
    if structure.opponents == EVOLVING and structure.detector == "none":
        return 1 / step["evolving"]
    slower = params.passes(name) / PLAIN_PASSES - 1  # by whoever is attacked in training
    return 1 / step["adv" if structure.detector == "none" else "ours"] + slower / step["adv"]


def _per_image(name: str, attack: Attack, chosen: Plan, rates: Rates) -> float:
    """Seconds for attacking and storing one image."""
    measured: Mapping[str, float] = rates.attacks[name]
    share = chosen.cw_steps / 100 if attack.method == "cw" else 1.0
    return share / measured["attack"] + 1 / measured["store"]


def whitebox_passes(params: Params, cw_steps: int) -> float:
    """Gradient passes that one white-box image costs, those that only a part of the images meets in proportion."""
    passes = 0.0
    for attack in params.whitebox.attacks.values():
        arguments = attack.arguments | ({"steps": cw_steps} if attack.method == "cw" else {})
        passes += _passes(arguments)
    reference = params.whitebox.attacks[params.whitebox.reference].arguments
    curve = len(params.whitebox.curve.eps) * _passes(reference)
    checks = params.whitebox.checks.steps + FORWARD * params.whitebox.checks.queries
    return passes + (curve + checks) / 5 + AUTOATTACK_PASSES / 10


def _passes(arguments: Mapping[str, Any]) -> float:
    passes = 1.0
    for name in ("steps", "restarts", "search_steps"):
        passes *= int(arguments.get(name, 1))
    return passes
