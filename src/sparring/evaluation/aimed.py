"""The engine of white-box evaluation: one attack on one net, shard by shard, judged by the net itself."""

import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from sparring import progress, store
from sparring.attacks import engine, generation
from sparring.params.attacks import Attack

Predict = Callable[[store.Images], pd.DataFrame]
"""From images to a row an image: index, label, prediction, confidence, and what else is known."""


def attack_images(
    settings: generation.Settings,
    attack: Attack,
    name: str,
    net: nn.Module,
    aim: engine.Aim,
    predict: Predict,
    images: store.Images,
    only: np.ndarray,
    pool: store.Images,
    folder: Path,
    device: torch.device,
    advance: progress.Advance,
    goes_on: Callable[[int], bool] = lambda count: True,
) -> tuple[pd.DataFrame, store.Images]:
    """One attack on the images that `only` (N,) names: a row of predictions for each, with l2 and linf, and the images
    as they were attacked, whose column `seconds` tells how long each took.

    net: decides.  aim: what the attack asks instead.  pool: clean images among which NST's partners are drawn.
    folder: keeps finished shards; a run that was killed goes on after them.
    goes_on: is asked before each shard that is not finished, with its number of images; where it says no, the images
    from there on are not attacked, and have no row.
    """

    def make(shard: store.Images) -> store.Images:
        began = time.perf_counter()
        made = generation.attacked(settings, attack, name, net, aim, shard, pool, device)
        each = np.full(len(shard), (time.perf_counter() - began) / max(len(shard), 1), np.float32)
        return store.Images(made.index, made.label, made.image, made.columns | {"seconds": each})

    metadata = {"shape": list(images.image.shape[1:]), "attack": name}
    parts = []
    for shard, path in generation.shards_and_paths(folder / name, images[only], settings.store.batch_size):
        path = path.with_stem(f"{path.stem}-{_digest(shard)}")
        if not (generation.is_finished(path, shard) or goes_on(len(shard))):
            break
        generation.write_unless_finished(path, shard, make, metadata, advance)
        parts.append(store.read(path))
    attacked = store.joined(parts) if parts else images[:0]
    rows = predict(attacked)
    for key in ("l2", "linf"):
        rows[key] = attacked.columns[key] if parts else np.empty(0, np.float32)
    return rows, attacked


def _digest(shard: store.Images) -> str:
    """Tells one shard's clean images from any others."""
    return blake2b(np.ascontiguousarray(shard.image).tobytes(), digest_size=8).hexdigest()
