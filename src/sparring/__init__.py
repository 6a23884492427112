"""Sparring: classifiers trained against a stored gallery of opponents. `sparring.load` reads a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparring.models.classifier import Classifier


def load(path: str | Path) -> Classifier:
    """A trained structure, as a torch.nn.Module in eval mode on the CPU, from its file in models/.

    It takes images (N, 3, H, W) in [0, 1], not normalised, and gives logits (N, classes). The file says what it is: no
    params.yaml is read. Raises params.InputError for a file that is missing or holds no classifier of Sparring.
    """
    from sparring.evaluation import (
        exchange,  # as `import sparring` alone should not take the time that loading torch takes
    )

    return exchange.load(path)
