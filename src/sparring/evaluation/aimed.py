"""The engine of white-box evaluation: it attacks one net shard by shard, and the net itself classifies the results."""

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
"""A function from images to one row per image: index, label, prediction, confidence, and further columns."""


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
    may_attack: Callable[[int], bool] = lambda count: True,
) -> tuple[pd.DataFrame, store.Images]:
    """Attack the images where `only` (N,) is true. Returns a row of predictions for each, with l2 and linf, and the
    attacked images, whose column `seconds` is the time that each took.

    net: the model that the attack has to fool.  aim: the model that the attack queries in its place.
    pool: clean images among which NST's partners are drawn.  folder: keeps finished shards, after which a run that was
    killed continues.
    may_attack: is called before each unfinished shard with its number of images. Where it returns false, the images of
    that shard and of all later ones are not attacked and have no row.
    """

    def attack_shard(shard: store.Images) -> store.Images:
        began = time.perf_counter()
        attacked_shard = generation.attacked(settings, attack, name, net, aim, shard, pool, device)
        seconds = np.full(len(shard), (time.perf_counter() - began) / max(len(shard), 1), np.float32)
        columns = attacked_shard.columns | {"seconds": seconds}
        return store.Images(attacked_shard.index, attacked_shard.label, attacked_shard.image, columns)

    metadata = {"shape": list(images.image.shape[1:]), "attack": name}
    parts = []
    for shard, path in generation.shards_and_paths(folder / name, images[only], settings.store.batch_size):
        path = path.with_stem(f"{path.stem}-{_image_digest(shard)}")
        if not (generation.is_finished(path, shard) or may_attack(len(shard))):
            break
        generation.write_unless_finished(path, shard, attack_shard, metadata, advance)
        parts.append(store.read(path))
    attacked = store.joined(parts) if parts else images[:0]
    rows = predict(attacked)
    for key in ("l2", "linf"):
        rows[key] = attacked.columns[key] if parts else np.empty(0, np.float32)
    return rows, attacked


def _image_digest(shard: store.Images) -> str:
    """Return a hexadecimal digest of a shard's clean images, by which its file is recognised."""
    return blake2b(np.ascontiguousarray(shard.image).tobytes(), digest_size=8).hexdigest()
