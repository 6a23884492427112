"""Draws which version of every image an epoch uses: the clean one, or that of one of the attacks.

Method: arXiv 2204.11596, the random sampler with dynamic probabilities. Version 0 is the clean image,
version i the i-th attack. A draw is a function of (seed, epoch, image), so an epoch can be drawn on its own.
"""

import numpy as np

from sparring.device import rng
from sparring.params.structures import Sampler


def weights(settings: Sampler, attacks: list[str]) -> np.ndarray:
    """Return the attacks' weights (A,), which sum to 1. An attack without an entry has weight 1 before scaling."""
    unscaled = np.array([settings.weights.get(name, 1.0) for name in attacks], np.float64)
    return unscaled / unscaled.sum()


def probabilities(settings: Sampler, base: np.ndarray, generator: np.random.Generator) -> tuple[float, np.ndarray]:
    """Draw the adversarial share and the attacks' weights (A,) once.

    The share is uniform in adv_ratio ± range. Weight i is w_i (1 + r (u_i − Σ w_j u_j) / 2) with u uniform in [−1, 1]:
    the sum stays 1, the expectation w_i, each within w_i (1 ± r), and a weight of 0 stays 0.
    """
    share = settings.adv_ratio + settings.range * generator.uniform(-1, 1)
    u = generator.uniform(-1, 1, len(base))
    return float(np.clip(share, 0, 1)), base * (1 + settings.range * (u - base @ u) / 2)


def draw(
    settings: Sampler, attacks: list[str], *, seed: int, epoch: int, visits: np.ndarray, batch_size: int
) -> np.ndarray:
    """Draw the version of each image (N,) in this epoch: 0 for clean, i for attacks[i − 1]. Entry k is image k's.

    visits: the order in which the epoch visits the images. It and batch_size matter only for `redraw: batch`, with
    which share and weights are drawn anew for each batch.
    """
    base, share, bounds, chance = _probabilities_of_images(settings, attacks, seed, epoch, visits, batch_size)
    return _versions(base, chance, share, bounds)


def draw_fixed(
    settings: Sampler, attacks: list[str], *, seed: int, epoch: int, visits: np.ndarray, batch_size: int
) -> np.ndarray:
    """Draw as `draw` does, by the classical strategy: each image has one attack, the same in every epoch, and only
    whether it is clean is drawn anew."""
    base, share, _, chance = _probabilities_of_images(settings, attacks, seed, epoch, visits, batch_size)
    chance[:, 1] = rng(seed, "fixed").random(len(visits))
    return _versions(base, chance, share, np.cumsum(base)[None])


def _probabilities_of_images(
    settings: Sampler, attacks: list[str], seed: int, epoch: int, visits: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the attacks' weights (A,); for each image, the adversarial share (N,) and the attacks' cumulated weights
    (N, A); and its random numbers (N, 2), as `_versions` takes them."""
    base, count = weights(settings, attacks), len(visits)
    share, bounds = np.empty(count), np.empty((count, len(base)))
    groups = [visits] if settings.redraw == "epoch" else np.split(visits, range(batch_size, count, batch_size))
    for number, group in enumerate(groups):
        drawn_share, drawn_weights = probabilities(settings, base, rng(seed, "probabilities", epoch, number))
        share[group] = drawn_share
        bounds[group] = np.cumsum(drawn_weights)
    return base, share, bounds, rng(seed, "sampler", epoch).random((count, 2))


def _versions(base: np.ndarray, chance: np.ndarray, share: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the versions (N,).  chance: random numbers (N, 2), for whether an image is attacked and for the attack."""
    # The attack is the first whose bound is above the chance. Rounding must not lift it past the last used attack.
    last = int(np.flatnonzero(base)[-1])
    attack = np.minimum((chance[:, 1:] >= bounds).sum(1), last)
    return np.where(chance[:, 0] < share, attack + 1, 0)
