"""Runs an attack over the clean set, shard by shard, and stores what is left of it after rounding to 8 bits."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparring import attacks, files, networks, progress, store
from sparring.device import channels_last, choose, rng, torch_seed
from sparring.networks import ResNet
from sparring.params import ATTACKED_SPLITS, EVALUATED_SPLITS, Attack, Params


def folder(params: Params, name: str) -> Path:
    """Where an attack's images are stored; training depends on the first of the two folders only."""
    return (files.ADVERSARIAL if name in params.attacks else files.UNSEEN) / name


def attack_splits(params: Params, name: str) -> None:
    """Attack the clean set with `attacks.<name>` (train, test, heldout) or `unseen_attacks.<name>` (test, heldout)."""
    device = choose(params)
    seen = name in params.attacks
    attack = params.attacks[name] if seen else params.unseen_attacks[name]
    splits = ATTACKED_SPLITS if seen else EVALUATED_SPLITS
    with progress.timed(f"{'attack' if seen else 'attack_unseen'}@{name}", device) as done:
        clean = {split: store.read(files.CLEAN / f"{split}.parquet") for split in splits}
        train = clean["train"] if seen else store.read(files.CLEAN / "train.parquet")
        net = networks.load(params.network, len(train.metadata["classes"]), files.PRETRAINED)
        origin = {
            "attack": name,
            "method": attack.method,
            "arguments": attack.stored(),
            "source_model": networks.digest(net),
        }
        channels_last(net, device)
        count = sum(map(len, clean.values()))
        with progress.bar(f"attack@{name}", count) as advance:
            for split in splits:
                metadata = train.metadata | {"split": split} | origin
                shards = attacked(params, attack, name, net, clean[split], train, device)
                store.write(folder(params, name) / f"{split}.parquet", _advancing(shards, advance), metadata)
        done(count, f"{count:,} images attacked")


def _advancing(shards: Iterator[store.Images], advance: progress.Advance) -> Iterator[store.Images]:
    for shard in shards:
        yield shard
        advance(len(shard))


def attacked(
    params: Params,
    attack: Attack,
    name: str,
    net: ResNet,
    clean: store.Images,
    pool: store.Images,
    device: torch.device,
) -> Iterator[store.Images]:
    """Attack `clean` shard by shard. Yields shards with the stored images and the columns prediction, l2 and linf.

    net: the source model, on `device`.  pool: clean images among which NST's partners are drawn.
    Attacks run on a folded, frozen copy; the prediction on the stored image is the original model's.
    """
    copy = channels_last(networks.frozen(net), device)
    function = attacks.find(attack.method)
    wants = inspect.signature(function).parameters
    arguments = attack.stored()
    if arguments.get("seed", 0) is None:
        # Left alone, torchattacks would take the time of day.
        arguments["seed"] = int(rng(params.seed, "torchattacks", name).integers(2**31))
    others = (
        {label: np.flatnonzero(pool.label != label) for label in np.unique(clean.label)} if "partners" in wants else {}
    )
    for shard in store.in_shards(clean, params.store.shard_size):
        parts = [np.empty((0, *clean.image.shape[1:]), np.uint8)]
        for start in range(0, len(shard), params.store.batch_size):
            batch = shard[start : start + params.store.batch_size]
            images = networks.to_images(batch.image, device)
            labels = torch.from_numpy(batch.label).to(device)
            extra: dict[str, Tensor] = {}
            if "noise" in wants:
                extra["noise"] = _noise(params.seed, name, batch, images)
            if "partners" in wants:
                drawn = [
                    others[label][rng(params.seed, "partner", name, index).integers(len(others[label]))]
                    for index, label in zip(batch.index.tolist(), batch.label.tolist(), strict=True)
                ]
                extra["partners"] = networks.to_images(pool.image[drawn], device)
            with torch_seed(params.seed, "attack", name, int(batch.index[0])):
                result = function(copy, images, labels, **arguments, **extra)
            parts.append(as_stored(batch.image, result, attack))
        image = np.concatenate(parts)
        change = (image.astype(np.float32) - shard.image) / 255
        flat = change.reshape(len(shard), int(np.prod(image.shape[1:])))
        probabilities = networks.predict(net, image, params.store.batch_size, device)
        columns = {
            "prediction": probabilities.argmax(1) if len(shard) else np.empty(0, np.int64),
            "l2": np.sqrt(np.square(flat, dtype=np.float64).sum(1)),
            "linf": np.abs(flat).max(1, initial=0),
        }
        yield store.Images(shard.index, shard.label, image, columns)


def _noise(seed: int, name: str, batch: store.Images, images: Tensor) -> Tensor:
    shape = images.shape[1:]
    drawn = [rng(seed, "noise", name, index).standard_normal(shape, np.float32) for index in batch.index.tolist()]
    return torch.from_numpy(np.stack(drawn)).to(images.device)


def as_stored(clean: np.ndarray, attacked_images: Tensor, attack: Attack) -> np.ndarray:
    """Round attacked images (N, C, H, W) to (N, H, W, C) uint8, to nearest, and never past the attack's eps.

    clean: (N, H, W, C) uint8. An L2 ball is kept by shrinking the change and rounding again until it fits.
    """
    wanted = attacked_images.detach().permute(0, 2, 3, 1).cpu().numpy().astype(np.float32) * 255
    start = clean.astype(np.float32)
    levels = np.clip(np.rint(wanted), 0, 255)
    linf, l2 = attack.linf, attack.l2
    if linf is not None:
        radius = round(255 * linf)
        levels = np.clip(levels, start - radius, start + radius)
    if l2 is not None:
        scale = np.ones((len(clean), 1, 1, 1), np.float32)
        while len(outside := np.flatnonzero(np.sqrt(np.square((levels - start) / 255).sum((1, 2, 3))) > l2)):
            scale[outside] *= 0.98
            shrunk = start[outside] + scale[outside] * (wanted[outside] - start[outside])
            levels[outside] = np.clip(np.rint(shrunk), 0, 255)
    return levels.astype(np.uint8)
