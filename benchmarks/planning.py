"""Plans a run of benchmarks/full_size.py: what fits into the given seconds on a machine with these rates.

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
# Shares, for C&W's steps and for white-box images, of the time that the smallest run leaves; epochs get the rest.
CW_SHARE, WHITEBOX_SHARE = 0.15, 0.25
RESERVE = 0.1  # this share of the time is left free, as parts may take longer than measured
STARTS = 2  # processes, one after another, whose start each part waits for
REPORT = 25.0  # seconds that the report is given at least
BENCHMARK = 30.0  # seconds for the benchmarks' rows
AUTOATTACK_PASSES = 3000  # gradient passes for an image that withstands it, by its steps, restarts and targets
FORWARD = 1 / 3  # a query's cost in gradient passes
# Where time is short, white-box images are halved down to their least; then parts are left out in this order.
OPTIONAL = ("corruptions", "benchmark", "detect", "whitebox")
# Parts run in this order.
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
    """Holds a machine's rates, in images a second unless said otherwise.

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
    """Holds the sizes of a run.

    epochs: of every training.  learning_rate: factor on the parameters' rates, in proportion to the batch (Goyal et
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
        """Return the plan's changes to the parameters, as KEY=VALUE."""
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
        """Return the parameters with the plan's numbers of white-box images."""
        images, fewer = self.whitebox_images, max(1, self.whitebox_images // 5)
        whitebox = params.whitebox
        changes: dict[str, Any] = {"images": images}
        for name, count in (("checks", fewer), ("curve", fewer), ("autoattack", images // 10)):
            changes[name] = getattr(whitebox, name).model_copy(update={"images": count})
        return params.model_copy(update={"whitebox": whitebox.model_copy(update=changes)})

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds}


def plan(rates: Rates, params: Params, seconds: float, parts: Sequence[str] = PARTS) -> Plan:
    """Plan the largest run of these parameters whose `parts` fit into `seconds`, less the share RESERVE.

    It starts from the smallest run, without the parts that do not fit even then. The rest of the time goes to C&W's
    steps, white-box images and epochs, none beyond the parameters' own.
    """
    seconds *= 1 - RESERVE
    profile_batch_size = params.training.batch_size
    size = int(max(rates.steps, key=lambda size: 1 / sum(1 / rate for rate in rates.steps[size].values())))
    steps = params.attacks["cw"].arguments["steps"] if "cw" in params.attacks else LEAST_CW_STEPS
    least = Plan(
        epochs=min(LEAST_EPOCHS, params.training.epochs),
        batch_size=size,
        learning_rate=size / profile_batch_size,
        cw_steps=min(LEAST_CW_STEPS, steps),
        whitebox_images=min(LEAST_WHITEBOX, params.whitebox.images),
        parts={},
    )
    draft = shrunk(least, rates, params, seconds, parts)
    spare = max(0.0, seconds - draft.seconds)
    draft = _grown(draft, "cw_steps", steps, rates, params, draft.seconds + CW_SHARE * spare)
    if "whitebox" in draft.parts:
        most = params.whitebox.images
        draft = _grown(draft, "whitebox_images", most, rates, params, draft.seconds + WHITEBOX_SHARE * spare)
    return _grown(draft, "epochs", params.training.epochs, rates, params, seconds)


def shrunk(draft: Plan, rates: Rates, params: Params, seconds: float, parts: Sequence[str]) -> Plan:
    """Return `draft` for these parts alone, with so few white-box images, and so many parts left out, that it fits."""
    draft = _timed(draft, rates, params, [name for name in parts if name not in draft.left_out])
    while draft.seconds > seconds and "whitebox" in draft.parts and draft.whitebox_images > LEAST_WHITEBOX:
        fewer = replace(draft, whitebox_images=max(LEAST_WHITEBOX, draft.whitebox_images // 2))
        draft = _timed(fewer, rates, params, draft.parts)
    for name in OPTIONAL:
        if draft.seconds > seconds and name in draft.parts:
            parts_left = {part: cost for part, cost in draft.parts.items() if part != name}
            draft = replace(draft, parts=parts_left, left_out=[*draft.left_out, name])
    return draft


def _grown(draft: Plan, name: str, most: int, rates: Rates, params: Params, seconds: float) -> Plan:
    """Return `draft` with the largest value of one field that fits into `seconds`, but no smaller than it is."""
    low, high = getattr(draft, name), most
    while low < high:
        middle = (low + high + 1) // 2
        fits = _timed(replace(draft, **{name: middle}), rates, params, draft.parts).seconds <= seconds
        low, high = (middle, high) if fits else (low, middle - 1)
    return _timed(replace(draft, **{name: low}), rates, params, draft.parts)


def _timed(draft: Plan, rates: Rates, params: Params, parts: Iterable[str]) -> Plan:
    costs = seconds_of(draft, rates, params)
    return replace(draft, parts={name: costs[name] for name in parts})


def seconds_of(draft: Plan, rates: Rates, params: Params) -> dict[str, float]:
    """Return the seconds that each part takes, in the order in which they run."""
    data, step = params.data, rates.steps[str(draft.batch_size)]
    images = data.train + data.validation + data.test + data.heldout
    evaluated_images = sum(int(getattr(data, split)) for split in EVALUATED_SPLITS)
    structures = len(params.structures)
    training = draft.epochs * data.train
    with_detector = [name for name, structure in params.structures.items() if structure.detector != "none"]
    attack_seconds = [images * _per_image(name, attack, draft, rates) for name, attack in params.attacks.items()]
    versions = 1 + len(params.attacks)
    aimed = draft.whitebox_images * whitebox_passes(params, draft.cw_steps) / rates.gradients
    starts = STARTS * rates.start
    return {
        "prepare": rates.start + images / rates.prepare,
        "measure": rates.start + 10,
        "pretrain": rates.start + training / step["adv"],
        "attacks": starts + max([sum(attack_seconds) / rates.beside, *attack_seconds]),
        "train": rates.start + sum(training * _per_visit(params, name, step) for name in params.trained),
        "evaluate": starts + structures * evaluated_images * versions / rates.predict / rates.beside,
        "whitebox": starts + structures * aimed / rates.beside,
        # Each image passes the net as it is and squeezed in two ways, and the net whose maps the detector reads.
        "detect": rates.start + len(with_detector) * evaluated_images * (versions + 3) * 4 / rates.predict,
        "corruptions": starts + structures * data.heldout * 31 / rates.predict / rates.beside,
        "benchmark": rates.start + BENCHMARK,
        "report": rates.start + REPORT,
    }


def _per_visit(params: Params, name: str, step: Mapping[str, float]) -> float:
    """Return the seconds for learning from one image.  step: images a second, by kind of structure."""
    structure = params.structures[name]
    if structure.opponents == EVOLVING and structure.detector == "none":
        return 1 / step["evolving"]
    slower = params.passes(name) / PLAIN_PASSES - 1  # by the attacks in training
    return 1 / step["adv" if structure.detector == "none" else "ours"] + slower / step["adv"]


def _per_image(name: str, attack: Attack, draft: Plan, rates: Rates) -> float:
    """Return the seconds for attacking and storing one image."""
    measured: Mapping[str, float] = rates.attacks[name]
    share = draft.cw_steps / 100 if attack.method == "cw" else 1.0
    return share / measured["attack"] + 1 / measured["store"]


def whitebox_passes(params: Params, cw_steps: int) -> float:
    """Return the gradient passes for one white-box image. Attacks on a part of the images count in proportion."""
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
