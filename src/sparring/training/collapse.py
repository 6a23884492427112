"""When a training against attacks has collapsed: the net has learned to fool the attack in one step, and no other."""

from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSE = (
    "its training has collapsed: accuracy under FGSM is far above that under PGD, which was twice as high before, so "
    "the net of this epoch withstands no attacker of several steps (catastrophic overfitting, arXiv 2001.03994)"
)
FALL, GAP = 0.5, 0.15
LEAST = 0.15  # accuracy under PGD from which it can fall: nets that never withstand it begin near guessing


def collapsed_at(history: Sequence[Mapping[Any, Any]]) -> int | None:
    """The first epoch, from 1, in which accuracy under PGD is at most FALL of the highest before it, which was LEAST or
    more, while that under FGSM, on the same images, is no lower than it was then and GAP above PGD's; None where there
    is none.

    history: a row an epoch, of which those that were monitored have fgsm_accuracy and pgd_accuracy.
    """
    highest = before = 0.0  # accuracy under PGD, and that under FGSM in the same epoch
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
