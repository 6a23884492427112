"""Draws the mixture of clean and attacked images on which all structures are compared."""

import zlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd

from sparring.params.names import CLEAN


def draw_mixture(
    index: np.ndarray, label: np.ndarray, attacks: Sequence[str], adv_ratio: float, seed: int, split: str
) -> pd.DataFrame:
    """Draw for each image, once for all structures, whether it is clean in the mixture, or under which attack.

    index, label: (N,), the images of a split.  adv_ratio: the share that is attacked.
    Returns columns index, attack; a function of the set of images, the set of attacks, adv_ratio, seed and split.

    Images are sorted by class and shuffled within it. Every (1 / adv_ratio)-th of this line is attacked, by the attacks
    in turn. A class is a piece of the line. So the number of attacked images, and the number for each attack, are their
    exact share rounded up or down, overall as well as in each class.
    """
    generator = np.random.default_rng([seed, zlib.crc32(f"mixture/{split}".encode())])
    by_index = np.argsort(index, kind="stable")
    shuffled = by_index[generator.permutation(len(index))]
    line = shuffled[np.argsort(label[shuffled], kind="stable")]
    turn = generator.permutation(sorted(attacks))
    share = Fraction(str(adv_ratio)).limit_denominator(10**6)  # whole numbers: floats would round 15 × 0.3 either way
    attacked_before = (2 * np.arange(len(line) + 1) * share.numerator + share.denominator) // (2 * share.denominator)
    attacked = np.diff(attacked_before) > 0
    names = np.where(attacked, turn[attacked_before[:-1] % len(turn)], CLEAN)
    return pd.DataFrame({"index": index[line], "attack": names.astype(str)})


def detector_rows(mixture: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """Add to the mixture's predictions a column `adversarial`: whether a detector should accuse the image.

    An image that its attack left unchanged is a clean image, and counts as one.
    """
    changed = stored[["split", "attack", "index", "linf"]]
    rows = mixture.merge(changed, on=["split", "attack", "index"], how="left", validate="many_to_one")
    return rows.assign(adversarial=rows["linf"].fillna(0) > 0)
