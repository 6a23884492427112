"""Sparring trains classifiers against a stored gallery of opponents. `sparring.load` reads a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparring.models.classifier import Classifier


def load(path: str | Path) -> Classifier:
    """Load a trained structure from its file in models/, as a torch.nn.Module in eval mode on the CPU.

    The module takes images (N, 3, H, W) in [0, 1], not normalised, and returns logits (N, classes). The file describes
    its network, so no params.yaml is read. Raises params.InputError for a file that is missing or holds no classifier
    of Sparring.
    """
    from sparring.evaluation import (
        exchange,  # here, so that `import sparring` alone does not take the time of loading torch
    )

    return exchange.load(path)
