"""Which attacks an audit runs, what each costs, and what of them fits the time."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparring.attacks import engine, losses
from sparring.params.attacks import (
    APGD,
    APGD_T,
    FAB_T,
    QUERIES,
    STEPS,
    TARGETS,
    Attack,
    attack_entry,
    autoattack_parts,
    torchattacks_entry,
)
from sparring.params.names import SQUARE

AUTOATTACK = (APGD, APGD_T, FAB_T, SQUARE)  # all that have to run for a figure to be AutoAttack's
FEW_TARGETS, FEW_QUERIES = 3, 500  # of what comes before
SHORT_SQUARE = "square_short"
SUBSET = 100  # images of the checks, the least norms and the curve
FEWEST = 20  # images on which such a part still says something
FEWEST_AUDITED = 50
FOR_PARTS = 0.4  # of the time, at most, goes to what is not the worst case
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)  # of the curve in L∞; at 128 any image can be made grey
LENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the curve in L2, at images of 32 pixels
WORST, CHECKS, LEAST, CURVE = "worst case", "checks", "least norms", "curve"  # the parts of an audit
STANDING_ON_CURVE = 0.4  # of the images, in the mean over the radii: an estimate, from which the time is planned
REFERENCE, SINGLE, LONGER, BLACK_BOX = "pgd", "one_step", "more_steps", "random_search"  # in the checks
TRANSFER = "transfer"


@dataclass(frozen=True)
class Planned:
    """An attack of an audit.

    key: its name in files.  title: for reading.
    gradients, forwards: how many passes an image takes, forward and back and forward alone; mostly an upper bound.
    """

    key: str
    title: str
    attack: Attack
    gradients: int
    forwards: int = 0


@dataclass(frozen=True)
class Rates:
    """What a pass of one image takes, in seconds."""

    gradient: float
    forward: float

    def seconds(self, planned: Planned, images: int = 1) -> float:
        return images * (planned.gradients * self.gradient + planned.forwards * self.forward)


class Clock:
    """The time that an audit has: `left` until its end, but for `reserved` seconds that later parts need."""

    def __init__(self, seconds: float) -> None:
        self.start = time.monotonic()
        self.seconds = seconds
        self.reserved = 0.0

    @property
    def used(self) -> float:
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        return self.seconds - self.used - self.reserved

    def allows(self, each: float) -> Callable[[int], bool]:
        """Whether so many more images fit, of which each takes so long."""
        return lambda count: count * each <= self.left


def measured(aim: engine.Aim, images: Tensor, labels: Tensor, gradients: bool) -> Rates:
    """Seconds of a pass of one image, in batches of these images (N, 3, H, W)."""

    def seconds(work: Callable[[], object]) -> float:
        work()  # the first pass loads and chooses kernels
        began, times = time.perf_counter(), 0
        while times < 2 or time.perf_counter() - began < 0.5:
            work()
            times += 1
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return (time.perf_counter() - began) / times / len(images)

    forward = seconds(lambda: aim.quick(images))
    return Rates(seconds(lambda: losses.loss_gradient(aim, images, labels)) if gradients else forward, forward)


def pgd(norm: str, eps: float, steps: int, restarts: int, loss: str) -> Attack:
    """PGD whose steps reach two and a half times across the ball."""
    step = max(2.5 * eps / steps, 1 / 255 if norm == "linf" else 0.0)
    settings = {"eps": eps, "step": step, "steps": steps, "norm": norm, "restarts": restarts, "loss": loss}
    return attack_entry("pgd", settings)


def one_step(norm: str, eps: float) -> Attack:
    """FGSM, or in L2 one step along the gradient."""
    if norm == "linf":
        return attack_entry("fgsm", {"eps": eps})
    settings = {"eps": eps, "step": eps, "steps": 1, "norm": norm, "restarts": 1, "loss": "cross_entropy"}
    return attack_entry("pgd", settings)


def square(norm: str, eps: float, queries: int) -> Attack:
    """Square with a schedule brought to the length of its budget."""
    return torchattacks_entry("Square", norm, eps=eps, n_queries=queries, resc_schedule=True)


def ladder(norm: str, eps: float, classes: int, gradients: bool) -> list[Planned]:
    """The attacks of the worst case, the cheapest first.

    eps: in [0, 1] units.  gradients: without them, Square is all there is.
    """
    targets = min(TARGETS, classes - 1)
    parts = autoattack_parts(norm, eps, classes)
    short = Planned(SHORT_SQUARE, f"Square, {FEW_QUERIES:,} queries", square(norm, eps, FEW_QUERIES), 0, FEW_QUERIES)
    whole = Planned(SQUARE, f"Square, {QUERIES:,} queries", parts[SQUARE], 0, QUERIES)
    if not gradients:
        return [short, whole]
    steps = [
        Planned(SINGLE, "FGSM" if norm == "linf" else "one step", one_step(norm, eps), 1),
        Planned("pgd_ce", "PGD, 20 steps", pgd(norm, eps, 20, 1, "cross_entropy"), 20),
        Planned("pgd_margin", "PGD on the margin, 20 steps, 2 starts", pgd(norm, eps, 20, 2, "margin"), 40, 2),
        Planned(APGD, f"APGD-CE, {STEPS} steps", parts[APGD], STEPS),
    ]
    if APGD_T in parts and targets > FEW_TARGETS:
        few = torchattacks_entry("APGDT", norm, eps=eps, steps=STEPS, n_restarts=1, n_classes=FEW_TARGETS + 1)
        title = f"APGD-T, {STEPS} steps, the {FEW_TARGETS} nearest classes"
        steps.append(Planned("apgd_t_few", title, few, STEPS * FEW_TARGETS, FEW_TARGETS))
    steps.append(short)
    passes = STEPS * targets
    if APGD_T in parts:
        steps.append(Planned(APGD_T, f"APGD-T, {STEPS} steps, {targets} classes", parts[APGD_T], passes, targets))
    return [*steps, whole, Planned(FAB_T, f"FAB-T, {STEPS} steps, {targets} classes", parts[FAB_T], passes, 2 * passes)]


def checks(norm: str, eps: float, gradients: bool) -> list[Planned]:
    """The attacks that the sanity checks compare, each on all images of a subset."""
    white = [
        Planned(SINGLE, "one step", one_step(norm, eps), 1),
        Planned(REFERENCE, "PGD, 20 steps", pgd(norm, eps, 20, 1, "cross_entropy"), 20),
        Planned(LONGER, f"PGD, {STEPS} steps", pgd(norm, eps, STEPS, 1, "cross_entropy"), STEPS),
    ]
    return [*(white if gradients else []), Planned(BLACK_BOX, "Square", square(norm, eps, FEW_QUERIES), 0, FEW_QUERIES)]


def least_norms(gradients: bool) -> list[Planned]:
    """The attacks that look for the least change of each image, in L2."""
    steps = STEPS // 2
    ddn = attack_entry("ddn", {"steps": STEPS, "gamma": 0.05, "start": 1.0})
    cw = {"c": 1.0, "kappa": 0.0, "steps": steps, "learning_rate": 0.01, "search_steps": 4}
    # Estimates: storing looks for the least scale that fools, which takes passes too, and from C&W images leave early.
    found = [
        Planned("ddn", f"DDN, {STEPS} steps", ddn, STEPS, 12),
        Planned("cw", f"C&W, 4 × {steps} steps", attack_entry("cw", cw), 2 * steps, 16),
    ]
    return found if gradients else []


def curve(norm: str, eps: float, size: int, gradients: bool) -> list[Planned]:
    """PGD at rising radii, up to one at which any image can be made grey."""
    if norm == "linf":
        radii = sorted({level / 255 for level in LEVELS} | {eps})
    else:
        radii = sorted({length * size / 32 for length in LENGTHS} | {eps})
    shown = {radius: f"{round(255 * radius)}/255" if norm == "linf" else f"{radius:g}" for radius in radii}
    planned = [
        Planned(f"radius_{number}", f"PGD at {shown[radius]}", pgd(norm, radius, 20, 1, "margin"), 20)
        for number, radius in enumerate(radii)
    ]
    return planned if gradients else []


def transfer(norm: str, eps: float) -> Planned:
    """What is made against another net and shown to the model."""
    return Planned(TRANSFER, "PGD on another net, 40 steps", pgd(norm, eps, 40, 1, "margin"), 40)


def images_that_fit(wanted: int, seconds: float, rates: Rates, steps: list[Planned]) -> int:
    """How many images the time allows to meet the attacks up to APGD-CE, which half of them live to see; without
    gradients, Square's short version."""
    by_key = {step.key: rates.seconds(step) for step in steps}
    first = by_key.get(SINGLE, 0.0) + by_key.get("pgd_ce", 0.0)
    later = by_key.get("pgd_margin", 0.0) + by_key.get(APGD, 0.0)
    fits = int((1 - FOR_PARTS) * seconds / ((first + later / 2) or by_key[SHORT_SQUARE]))
    return min(wanted, max(fits, FEWEST_AUDITED))


def part_seconds(name: str, steps: list[Planned], rates: Rates) -> float:
    """What a part of the audit takes an image. At the radii of the curve fewer and fewer images stand."""
    return sum(rates.seconds(step) for step in steps) * (STANDING_ON_CURVE if name == CURVE else 1.0)


def sizes(parts: dict[str, list[Planned]], most: int, seconds: float, rates: Rates) -> dict[str, int]:
    """How many images each part takes, of `most` that there are, so that all keep to their share of the time.

    parts: the most important first. Where FEWEST images of all would not fit, the last ones take none.
    """
    wanted = min(most, SUBSET)
    for last in range(len(parts), 0, -1):
        chosen = list(parts)[:last]
        each = sum(part_seconds(name, parts[name], rates) for name in chosen)
        count = min(wanted, int(FOR_PARTS * seconds / each)) if each else 0
        if count >= min(FEWEST, most):
            return {name: count if name in chosen and parts[name] else 0 for name in parts}
    return dict.fromkeys(parts, 0)


def radius_of(planned: Planned, norm: str) -> float:
    """The radius of an attack of the curve, in [0, 1] units."""
    found = planned.attack.linf if norm == "linf" else planned.attack.l2
    return float(np.nan if found is None else found)
