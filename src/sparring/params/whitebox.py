"""This module defines the section `whitebox` of params.yaml, and every attack that it asks for."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from sparring.params.attacks import TORCHATTACKS, Attack, attack_entries
from sparring.params.names import AUTOATTACK, CLEAN, MORE_STEPS, SINGLE_DRAW, SQUARE
from sparring.params.values import Count, CountOrZero, Radius, Section


class AutoAttack(Section):
    images: CountOrZero
    eps: Radius

    @field_validator("eps")
    @classmethod
    def _check_radius(cls, eps: float) -> float:
        if eps < 1 / 255 - 1e-6:
            raise ValueError("below 1/255 nothing of it survives storage in 8 bits")
        return eps


class Checks(Section):
    images: CountOrZero
    steps: Count
    queries: Count


class Curve(Section):
    images: CountOrZero
    eps: Annotated[list[Annotated[int, Field(ge=1, le=255)]], Field(min_length=1)]

    @field_validator("eps")
    @classmethod
    def _check_radii(cls, eps: list[int]) -> list[int]:
        if eps != sorted(set(eps)) or eps[-1] < 128:
            raise ValueError("it is radii in 1/255 that rise to 128 at least, at which any image can be made grey")
        return eps


class Whitebox(Section):
    images: CountOrZero
    attacks: dict[str, Attack]
    autoattack: AutoAttack
    checks: Checks
    curve: Curve

    @field_validator("attacks", mode="before")
    @classmethod
    def attack_entries(cls, entries: Any) -> Any:
        return attack_entries(entries, (CLEAN, AUTOATTACK, MORE_STEPS, SQUARE, SINGLE_DRAW))

    @model_validator(mode="after")
    def _check_reference(self) -> "Whitebox":
        names = [name for name, attack in self.attacks.items() if attack.method == "pgd" and attack.linf is not None]
        if not names:
            raise ValueError("attacks has no pgd with norm linf, from which the checks and the curve are made; add one")
        steps = self.attacks[names[0]].arguments["steps"]
        if self.checks.steps <= steps:
            raise ValueError(
                f"checks.steps is {self.checks.steps}; it must be more than attacks.{names[0]} has, which is {steps}"
            )
        return self

    @property
    def reference(self) -> str:
        """Return the name of the first PGD in L∞ among `attacks`, whose steps and radius the checks and curve vary."""
        return next(name for name, attack in self.attacks.items() if attack.method == "pgd" and attack.linf is not None)

    @property
    def on_curve(self) -> dict[str, Attack]:
        """Return the reference at each radius of the curve, with its step in proportion, by name in data/whitebox/."""
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
        """Return every attack that runs, by name in data/whitebox/, and the most images that it attacks."""
        reference = self.attacks[self.reference]
        square = {"norm": "Linf", "eps": reference.linf, "n_queries": self.checks.queries}
        auto = {"norm": "linf", "eps": self.autoattack.eps}
        longer = reference.arguments | {"steps": self.checks.steps}
        runs = {name: (attack, self.images) for name, attack in self.attacks.items()}
        runs[AUTOATTACK] = Attack(method=AUTOATTACK, arguments=auto), self.autoattack.images
        runs[MORE_STEPS] = Attack(method="pgd", arguments=longer), self.checks.images
        runs[SQUARE] = Attack(method=f"{TORCHATTACKS}Square", arguments=square), self.checks.images
        runs |= {name: (attack, self.curve.images) for name, attack in self.on_curve.items()}
        return self._limited(runs)

    @property
    def single_draw_runs(self) -> dict[str, tuple[Attack, int]]:
        """Return what also runs against a structure that predicts through a random transform: the reference, which then
        attacks a single draw."""
        return self._limited({SINGLE_DRAW: (self.attacks[self.reference], self.images)})

    def _limited(self, runs: dict[str, tuple[Attack, int]]) -> dict[str, tuple[Attack, int]]:
        limited = {name: (attack, min(count, self.images)) for name, (attack, count) in runs.items()}
        return {name: run for name, run in limited.items() if run[1]}
