"""Detects when a training against attacks has collapsed: the net withstands attacks of one step and no others."""

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSE = (
    "its training has collapsed: accuracy under FGSM is far above that under PGD, which was twice as high before, so "
    "the net of this epoch withstands no attacker of several steps (catastrophic overfitting, arXiv 2001.03994)"
)
FALL, GAP = 0.5, 0.15
LEAST = 0.15  # a fall counts from this accuracy under PGD on: nets that never withstand it begin near guessing


def collapsed_at(history: Sequence[Mapping[Any, Any]]) -> int | None:
    """Return the first epoch, from 1, in which the training has collapsed; None where there is none.

    In it, accuracy under PGD is at most FALL of its highest value before, which was LEAST or more. And accuracy under
    FGSM, on the same images, is no lower than it was then, and above that under PGD by GAP or more.
    history: one row per epoch; the epochs that were monitored have fgsm_accuracy and pgd_accuracy.
    """
    highest = before = 0.0  # accuracy under PGD, and under FGSM in the same epoch
    for number, row in enumerate(history, 1):
        pgd = row.get("pgd_accuracy")
        if pgd is None or pgd != pgd:  # not monitored: absent, or NaN once it has been through a file
            continue
        fgsm = row["fgsm_accuracy"]
        if highest >= LEAST and pgd <= FALL * highest and fgsm >= before and fgsm - pgd >= GAP:
            return number
        if pgd > highest:
            highest, before = pgd, fgsm
    return None
