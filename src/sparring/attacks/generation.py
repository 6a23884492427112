"""Runs an attack over the clean set, shard by shard, and stores what it made; a killed run goes on where it was."""

import inspect
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring import attacks, checkpoints, progress, store
from sparring.attacks import engine
from sparring.device import channels_last, choose, precision, rng, torch_seed
from sparring.layout import HERE, Layout
from sparring.models import classifier, model_files, networks
from sparring.models.classifier import Classifier
from sparring.params import Params, check_classes
from sparring.params.attacks import Attack
from sparring.params.errors import InputError
from sparring.params.names import EVALUATED_SPLITS, PARAMS_FILE, SPLITS


def attack_splits(params: Params, name: str, layout: Layout = HERE, splits: Sequence[str] | None = None) -> None:
    """Attack the clean set with `attacks.<name>` (all splits) or `unseen_attacks.<name>` (test, heldout).

    splits: those to attack in place of these.

    Finished shards are kept below PARTIAL until all files are written: a run that was killed goes on after them,
    and ends with the bytes of an undisturbed one.
    """
    device = choose(params)
    dtype = precision(params, device)
    seen = name in params.attacks
    attack = params.attacks[name] if seen else params.unseen_attacks[name]
    splits = splits or (SPLITS if seen else EVALUATED_SPLITS)
    with progress.timed(layout, f"{'attack' if seen else 'attack_unseen'}@{name}", device, dtype) as done:
        clean = {split: store.read(layout.clean / f"{split}.parquet") for split in splits}
        train = clean["train"] if "train" in clean else store.read(layout.clean / "train.parquet")
        classes = train.metadata["classes"]
        check_classes(params, len(classes))
        net = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        origin = {
            "attack": name,
            "method": attack.method,
            "arguments": attack.stored(),
            "source_model": model_files.digest(net),
        }
        channels_last(net, device)
        count = sum(map(len, clean.values()))
        settings = [origin, params.seed, params.deterministic, params.store.model_dump(exclude={"memory_budget"})]
        inputs = [layout.clean / f"{split}.parquet" for split in dict.fromkeys(("train", *splits))]
        unfinished = checkpoints.folder(name, settings, inputs, __name__, device, dtype)
        if compiled := engine.worth_compiling(net, attack, train.image.shape[1:], count, device):
            engine.compile_below(unfinished / "compiled")
        model = engine.Fast(net, device, dtype, compiled=compiled)
        with progress.bar(f"attack@{name}", count) as advance:
            for split in splits:
                metadata = train.metadata | {"split": split} | origin
                made = kept(
                    unfinished / split,
                    store.in_shards(clean[split], params.store.shard_size),
                    lambda shard: attacked(params, attack, name, net, model, shard, train, device),
                    metadata,
                    advance,
                )
                store.write(layout.attacked(params, name) / f"{split}.parquet", map(store.read, made), metadata)
        done(count, f"{count:,} images attacked")
        shutil.rmtree(unfinished)


def kept(
    prefix: Path,
    shards: Iterable[store.Images],
    make: Callable[[store.Images], store.Images],
    metadata: dict[str, Any],
    advance: progress.Advance,
) -> list[Path]:
    """What `make` makes of each shard, as files <prefix>-<number>.parquet; one that a killed run had finished stays."""
    made = []
    for number, shard in enumerate(shards):
        path = prefix.with_name(f"{prefix.name}-{number}.parquet")
        if not _is_finished(path, shard):
            store.write(path, [make(shard)], metadata)
        made.append(path)
        advance(len(shard))
    return made


def _is_finished(path: Path, shard: store.Images) -> bool:
    if not path.exists():
        return False
    try:
        return np.array_equal(store.read(path).index, shard.index)
    except InputError:  # cut short by a power failure
        return False


def attacked(
    params: Params,
    attack: Attack,
    name: str,
    net: Classifier,
    model: engine.Fast,
    shard: store.Images,
    pool: store.Images,
    device: torch.device,
) -> store.Images:
    """The stored images of a shard, with the columns prediction, prediction_float, prediction_rounded, l2 and linf.

    net: the source model, on `device`; all predictions are its own.  model: its copy for the gradients.
    pool: clean images among which NST's partners are drawn.  Raises InputError where an attack of torchattacks fails.
    """
    parts = [engine.Stored.empty(shard.image.shape[1:], params.store.dtype)]
    for start in range(0, len(shard), params.store.batch_size):
        batch = shard[start : start + params.store.batch_size]
        result = attack_batch(params, attack, name, model, batch, pool, device)
        labels = torch.from_numpy(batch.label).to(device)
        parts.append(engine.store(net, batch.image, result, labels, attack, params.store))
    image, prediction, prediction_float, prediction_rounded = (
        np.concatenate(part) for part in zip(*parts, strict=True)
    )
    change = (image.astype(np.float32) - shard.image) / 255
    flat = change.reshape(len(shard), int(np.prod(image.shape[1:])))
    columns = {
        "prediction": prediction,
        "prediction_float": prediction_float,
        "prediction_rounded": prediction_rounded,
        "l2": np.sqrt(np.square(flat, dtype=np.float64).sum(1)),
        "linf": np.abs(flat).max(1, initial=0),
    }
    return store.Images(shard.index, shard.label, image, columns)


def attack_batch(
    params: Params,
    attack: Attack,
    name: str,
    model: engine.Fast,
    batch: store.Images,
    pool: store.Images,
    device: torch.device,
) -> Tensor:
    """A batch as the attack leaves it (N, 3, H, W), not yet stored; arguments and InputError as for `attacked`."""
    function = attacks.find(attack.method)
    wants = inspect.signature(function).parameters
    arguments = attack.stored()
    if arguments.get("seed", 0) is None:
        # Left alone, torchattacks would take the time of day.
        arguments["seed"] = int(rng(params.seed, "torchattacks", name).integers(2**31))
    images = classifier.to_images(batch.image, device)
    labels = torch.from_numpy(batch.label).to(device)
    extra: dict[str, Tensor] = {}
    if "noise" in wants:
        extra["noise"] = _noise(params.seed, name, batch, tuple(images.shape[1:])).to(device)
    if "starts" in wants:
        shape = (arguments["restarts"], *images.shape[1:])
        extra["starts"] = _noise(params.seed, name, batch, shape).to(device)
    if "partners" in wants:
        extra["partners"] = classifier.to_images(pool.image[_partners(params.seed, name, batch, pool)], device)
    with torch_seed(params.seed, "attack", name, int(batch.index[0])):
        try:
            return engine.run(partial(function, **arguments), model, images, labels, extra)
        except Exception as error:
            if not attack.of_library:
                raise
            words = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"{PARAMS_FILE}: {params.key(name, attack)}: {attack.method} failed: {words}") from error


def _partners(seed: int, name: str, batch: store.Images, pool: store.Images) -> list[int]:
    """For each image of the batch, a row of the pool that is of another class."""
    others = {label: np.flatnonzero(pool.label != label) for label in np.unique(batch.label).tolist()}
    return [
        int(others[label][rng(seed, "partner", name, index).integers(len(others[label]))])
        for index, label in zip(batch.index.tolist(), batch.label.tolist(), strict=True)
    ]


def _noise(seed: int, name: str, batch: store.Images, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (N, *shape), drawn image by image."""
    drawn = [rng(seed, "noise", name, index).standard_normal(shape, np.float32) for index in batch.index.tolist()]
    return torch.from_numpy(np.stack(drawn))
