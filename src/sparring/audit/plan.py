"""The attacks of an audit, what each costs, and how many images fit the time."""

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

AUTOATTACK = (APGD, APGD_T, FAB_T, SQUARE)  # all of these have to run for a figure to be AutoAttack's
FEW_TARGETS, FEW_QUERIES = 3, 500  # of the short versions of APGD-T and Square, which run before the whole ones
SHORT_SQUARE = "square_short"
SUBSET = 100  # images of the checks, the least norms and the curve
FEWEST = 20  # images on which such a part still says something
FEWEST_AUDITED = 50
FOR_PARTS = 0.4  # of the time, at most, goes to the parts other than the worst case
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)  # of the curve in L∞; at 128 any image can be made grey
LENGTHS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the curve in L2, at images of 32 pixels
WORST, CHECKS, LEAST, CURVE = "worst case", "checks", "least norms", "curve"  # the parts of an audit
STANDING_ON_CURVE = 0.4  # of the images, in the mean over the radii: an estimate by which the time is planned
REFERENCE, SINGLE, LONGER, BLACK_BOX = "pgd", "one_step", "more_steps", "random_search"  # in the checks
TRANSFER = "transfer"


@dataclass(frozen=True)
class PlannedAttack:
    """An attack of an audit, with what it costs.

    key: its name in files.  title: its name on the page.
    gradients: how many passes forward and back an image takes.  forwards: how many forward alone. Both are mostly upper
    bounds.
    """

    key: str
    title: str
    attack: Attack
    gradients: int
    forwards: int = 0


@dataclass(frozen=True)
class Rates:
    """The seconds that one image takes.

    gradient: in a pass forward and back.  forward: in a pass forward alone.
    """

    gradient: float
    forward: float

    def seconds(self, attack: PlannedAttack, images: int = 1) -> float:
        """Return the seconds that an attack takes on so many images."""
        return images * (attack.gradients * self.gradient + attack.forwards * self.forward)


class Clock:
    """The time of an audit. `left` is the seconds until its end, less those `reserved` for later parts."""

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

    def allows(self, seconds_per_image: float) -> Callable[[int], bool]:
        """Return a predicate on a number of images: whether they fit the time that is left when it is called."""
        return lambda count: count * seconds_per_image <= self.left


def measure_rates(aim: engine.Aim, images: Tensor, labels: Tensor, has_gradients: bool) -> Rates:
    """Measure the seconds of a pass of one image, in batches of these images (N, 3, H, W)."""

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
    return Rates(seconds(lambda: losses.loss_gradient(aim, images, labels)) if has_gradients else forward, forward)


def pgd(norm: str, eps: float, steps: int, restarts: int, loss: str) -> Attack:
    """Return PGD whose steps together are two and a half radii long; in L∞ each is at least 1/255."""
    step = max(2.5 * eps / steps, 1 / 255 if norm == "linf" else 0.0)
    settings = {"eps": eps, "step": step, "steps": steps, "norm": norm, "restarts": restarts, "loss": loss}
    return attack_entry("pgd", settings)


def one_step(norm: str, eps: float) -> Attack:
    """Return FGSM or, in L2, PGD of one step."""
    if norm == "linf":
        return attack_entry("fgsm", {"eps": eps})
    settings = {"eps": eps, "step": eps, "steps": 1, "norm": norm, "restarts": 1, "loss": "cross_entropy"}
    return attack_entry("pgd", settings)


def square_attack(norm: str, eps: float, queries: int) -> Attack:
    """Return the Square attack, with its schedule scaled to the number of queries."""
    return torchattacks_entry("Square", norm, eps=eps, n_queries=queries, resc_schedule=True)


def worst_case_attacks(norm: str, eps: float, classes: int, has_gradients: bool) -> list[PlannedAttack]:
    """Return the attacks of the worst case in the order in which they run, the cheapest first.

    eps: in [0, 1] units.  has_gradients: whether the model has any; without them only Square is run.
    """
    targets = min(TARGETS, classes - 1)
    parts = autoattack_parts(norm, eps, classes)
    few_queries = square_attack(norm, eps, FEW_QUERIES)
    short = PlannedAttack(SHORT_SQUARE, f"Square, {FEW_QUERIES:,} queries", few_queries, 0, FEW_QUERIES)
    whole = PlannedAttack(SQUARE, f"Square, {QUERIES:,} queries", parts[SQUARE], 0, QUERIES)
    if not has_gradients:
        return [short, whole]
    attacks = [
        PlannedAttack(SINGLE, "FGSM" if norm == "linf" else "one step", one_step(norm, eps), 1),
        PlannedAttack("pgd_ce", "PGD, 20 steps", pgd(norm, eps, 20, 1, "cross_entropy"), 20),
        PlannedAttack("pgd_margin", "PGD on the margin, 20 steps, 2 starts", pgd(norm, eps, 20, 2, "margin"), 40, 2),
        PlannedAttack(APGD, f"APGD-CE, {STEPS} steps", parts[APGD], STEPS),
    ]
    if APGD_T in parts and targets > FEW_TARGETS:
        few = torchattacks_entry("APGDT", norm, eps=eps, steps=STEPS, n_restarts=1, n_classes=FEW_TARGETS + 1)
        title = f"APGD-T, {STEPS} steps, the {FEW_TARGETS} nearest classes"
        attacks.append(PlannedAttack("apgd_t_few", title, few, STEPS * FEW_TARGETS, FEW_TARGETS))
    attacks.append(short)
    passes = STEPS * targets
    if APGD_T in parts:
        title = f"APGD-T, {STEPS} steps, {targets} classes"
        attacks.append(PlannedAttack(APGD_T, title, parts[APGD_T], passes, targets))
    title = f"FAB-T, {STEPS} steps, {targets} classes"
    return [*attacks, whole, PlannedAttack(FAB_T, title, parts[FAB_T], passes, 2 * passes)]


def check_attacks(norm: str, eps: float, has_gradients: bool) -> list[PlannedAttack]:
    """Return the attacks that the sanity checks compare; each is run on all images of a subset."""
    white_box = [
        PlannedAttack(SINGLE, "one step", one_step(norm, eps), 1),
        PlannedAttack(REFERENCE, "PGD, 20 steps", pgd(norm, eps, 20, 1, "cross_entropy"), 20),
        PlannedAttack(LONGER, f"PGD, {STEPS} steps", pgd(norm, eps, STEPS, 1, "cross_entropy"), STEPS),
    ]
    black_box = PlannedAttack(BLACK_BOX, "Square", square_attack(norm, eps, FEW_QUERIES), 0, FEW_QUERIES)
    return [*(white_box if has_gradients else []), black_box]


def minimum_norm_attacks(has_gradients: bool) -> list[PlannedAttack]:
    """Return the attacks that look for the least L2 change of each image; none without gradients."""
    steps = STEPS // 2
    ddn = attack_entry("ddn", {"steps": STEPS, "gamma": 0.05, "start": 1.0})
    cw = {"c": 1.0, "kappa": 0.0, "steps": steps, "learning_rate": 0.01, "search_steps": 4}
    # The passes are estimates: storing looks for the least scale that fools, and images leave C&W early.
    attacks = [
        PlannedAttack("ddn", f"DDN, {STEPS} steps", ddn, STEPS, 12),
        PlannedAttack("cw", f"C&W, 4 × {steps} steps", attack_entry("cw", cw), 2 * steps, 16),
    ]
    return attacks if has_gradients else []


def curve_attacks(norm: str, eps: float, size: int, has_gradients: bool) -> list[PlannedAttack]:
    """Return PGD at rising radii, up to one at which any image can be made grey; none without gradients.

    size: the side of the images in pixels, with which the L2 radii grow.
    """
    if norm == "linf":
        radii = sorted({level / 255 for level in LEVELS} | {eps})
    else:
        radii = sorted({length * size / 32 for length in LENGTHS} | {eps})
    texts = {radius: f"{round(255 * radius)}/255" if norm == "linf" else f"{radius:g}" for radius in radii}
    attacks = [
        PlannedAttack(f"radius_{number}", f"PGD at {texts[radius]}", pgd(norm, radius, 20, 1, "margin"), 20)
        for number, radius in enumerate(radii)
    ]
    return attacks if has_gradients else []


def transfer_attack(norm: str, eps: float) -> PlannedAttack:
    """Return the attack whose images are made through another net and then given to the audited model."""
    return PlannedAttack(TRANSFER, "PGD on another net, 40 steps", pgd(norm, eps, 40, 1, "margin"), 40)


def images_that_fit(wanted: int, seconds: float, rates: Rates, attacks: list[PlannedAttack]) -> int:
    """Return on how many images, up to `wanted`, the worst case's first attacks can run: FEWEST_AUDITED at least.

    These are the attacks up to APGD-CE, where half of the images are expected to be left for the last two. Without
    gradients it is Square's short version.  seconds: all the time that the audit has.
    """
    by_key = {attack.key: rates.seconds(attack) for attack in attacks}
    first = by_key.get(SINGLE, 0.0) + by_key.get("pgd_ce", 0.0)
    later = by_key.get("pgd_margin", 0.0) + by_key.get(APGD, 0.0)
    fits = int((1 - FOR_PARTS) * seconds / ((first + later / 2) or by_key[SHORT_SQUARE]))
    return min(wanted, max(fits, FEWEST_AUDITED))


def part_seconds(name: str, attacks: list[PlannedAttack], rates: Rates) -> float:
    """Return the seconds that a part of the audit takes per image. The curve's radii have fewer and fewer images."""
    return sum(rates.seconds(attack) for attack in attacks) * (STANDING_ON_CURVE if name == CURVE else 1.0)


def part_sizes(parts: dict[str, list[PlannedAttack]], available: int, seconds: float, rates: Rates) -> dict[str, int]:
    """Return the number of images of each part, so that all parts together keep to FOR_PARTS of the time.

    parts: the most important first. Where there is no time for FEWEST images of each, the last parts get none.
    available: the number of images that there are.  seconds: all the time that the audit has.
    """
    wanted = min(available, SUBSET)
    for last in range(len(parts), 0, -1):
        included = list(parts)[:last]
        seconds_per_image = sum(part_seconds(name, parts[name], rates) for name in included)
        count = min(wanted, int(FOR_PARTS * seconds / seconds_per_image)) if seconds_per_image else 0
        if count >= min(FEWEST, available):
            return {name: count if name in included and parts[name] else 0 for name in parts}
    return dict.fromkeys(parts, 0)


def radius_of(planned: PlannedAttack, norm: str) -> float:
    """Return an attack's radius in the audit's norm, in [0, 1] units; NaN where it has none."""
    radius = planned.attack.linf if norm == "linf" else planned.attack.l2
    return float(np.nan if radius is None else radius)
