"""Attacks the clean set shard by shard and stores the attacked images. A killed run resumes where it was."""

import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparring import attacks, checkpoints, progress, store
from sparring.attacks import engine, storage
from sparring.data.draws import Draws
from sparring.device import channels_last, choose, on_device, precision, rng, torch_seed
from sparring.layout import HERE, Layout
from sparring.models import classifier, model_files, networks
from sparring.params import Params, check_classes
from sparring.params.attacks import Attack
from sparring.params.errors import InputError
from sparring.params.names import EVALUATED_SPLITS, SPLITS
from sparring.params.sections import Store


class Settings(Protocol):
    """These parts of params.yaml decide how attacked images are made."""

    @property
    def seed(self) -> int: ...

    @property
    def store(self) -> Store: ...

    def describe(self, name: str, attack: Attack) -> str:
        """Return the name of an attack in error messages."""


def attack_splits(params: Params, name: str, layout: Layout = HERE, splits: Sequence[str] | None = None) -> None:
    """Attack the clean set with `attacks.<name>` (all splits) or `unseen_attacks.<name>` (test, heldout).

    splits: those to attack in place of these.

    Finished shards are kept below PARTIAL until all files are written. A run that was killed goes on after them, and
    ends with the same bytes as an undisturbed one.
    """
    device = choose(params)
    dtype = precision(params, device)
    is_training_attack = name in params.attacks
    attack = params.attacks[name] if is_training_attack else params.unseen_attacks[name]
    splits = splits or (SPLITS if is_training_attack else EVALUATED_SPLITS)
    with progress.timed(layout, f"{'attack' if is_training_attack else 'attack_unseen'}@{name}", device, dtype) as done:
        clean = {split: store.read(layout.clean / f"{split}.parquet") for split in splits}
        train = clean["train"] if "train" in clean else store.read(layout.clean / "train.parquet")
        classes = train.metadata["classes"]
        check_classes(params, len(classes))
        net = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        origin = {
            "attack": name,
            "method": attack.method,
            "arguments": attack.run_arguments(),
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
        make = partial(attacked, params, attack, name, net, model, pool=train, device=device)
        bounds: dict[str, float] = {}
        with progress.bar(f"attack@{name}", count) as advance:
            for split in splits:
                metadata = train.metadata | {"split": split} | origin
                paths, facts = [], []
                for shard, path in shards_and_paths(unfinished / split, clean[split], params.store.shard_size):
                    judge = storage.Judge(net, params.store.batch_size, attack.predictions, bounds)
                    write_unless_finished(path, shard, partial(make, judge=judge), metadata, advance)
                    paths.append(path)
                    facts.append(store.read(path, ()).metadata["decided"])
                    bounds = bounds or {column: fact["bound"] for column, fact in facts[-1].items()}
                metadata |= {"decided": _decided(facts, len(clean[split]))}
                store.write(layout.attacked(params, name) / f"{split}.parquet", map(store.read, paths), metadata)
        done(count, f"{count:,} images attacked")
        shutil.rmtree(unfinished)


def _decided(facts: list[dict[str, dict[str, float]]], count: int) -> dict[str, dict[str, float]]:
    """Return, by column, the error bound of the fast copy, and the share of the `count` images whose prediction the
    net itself decided.  facts: those of each shard, from `Judge.facts`."""
    return {
        column: {
            "bound": facts[0][column]["bound"],
            "in_float32": sum(fact[column]["exact"] for fact in facts) / count,
        }
        for column in facts[0]
    }


def shards_and_paths(prefix: Path, images: store.Images, size: int) -> Iterator[tuple[store.Images, Path]]:
    """Yield each shard of at most `size` images, with the path of its file: <prefix>-<number>.parquet."""
    for number, shard in enumerate(store.in_shards(images, size)):
        yield shard, prefix.with_name(f"{prefix.name}-{number}.parquet")


def write_unless_finished(
    path: Path,
    shard: store.Images,
    make: Callable[[store.Images], store.Images],
    metadata: dict[str, Any],
    advance: progress.Advance,
) -> None:
    """Write the shard that `make` returns, its metadata included, unless a killed run had finished it."""
    if not is_finished(path, shard):
        attacked_shard = make(shard)
        store.write(path, [attacked_shard], metadata | attacked_shard.metadata)
    advance(len(shard))


def is_finished(path: Path, shard: store.Images) -> bool:
    """Say whether a file holds this shard, attacked by an earlier run."""
    if not path.exists():
        return False
    try:
        return np.array_equal(store.read(path).index, shard.index)
    except InputError:  # cut short by a power failure
        return False


def attacked(
    params: Settings,
    attack: Attack,
    name: str,
    net: nn.Module,
    model: engine.Aim,
    shard: store.Images,
    pool: store.Images,
    device: torch.device,
    judge: storage.Judge | None = None,
) -> store.Images:
    """Return the images of a shard as attacked and stored, with the columns l2 and linf. A judge, which is new for each
    shard, adds the net's predictions as columns, and to the metadata, as `decided`, how they were found.

    net: the source model, on `device`.  model: the model that the attack queries, such as a fast copy of the net.
    pool: clean images among which NST's partners are drawn.  Raises InputError where an attack of torchattacks fails.
    """
    parts: dict[str, list[Tensor]] = {"image": [], "l2": [], "linf": []}
    for start in range(0, max(len(shard), 1), params.store.batch_size):
        batch = shard[start : start + params.store.batch_size]
        clean, labels = on_device(batch.image, device), on_device(batch.label, device)
        levels = clean
        if len(batch):
            result = attack_batch(params, attack, name, model, batch, pool, device)
            levels = storage.store(net, model, clean, result, labels, attack, params.store, judge)
        parts["image"].append(levels.to(getattr(torch, params.store.dtype)))
        parts["l2"].append(storage.l2_lengths(levels, clean))
        parts["linf"].append(storage.largest_changes(levels, clean))
    # Fetched once for each shard, as fetching after each batch would wait for it.
    image, l2, linf = (torch.cat(chunks).cpu().numpy() for chunks in parts.values())
    columns, metadata = {"l2": l2, "linf": linf}, {}
    if judge is not None:
        columns, metadata = judge.predictions() | columns, {"decided": judge.facts()}
    return store.Images(shard.index, shard.label, image, columns, metadata)


def attack_batch(
    params: Settings,
    attack: Attack,
    name: str,
    model: engine.Aim,
    batch: store.Images,
    pool: store.Images,
    device: torch.device,
) -> Tensor:
    """Return a batch as attacked (N, 3, H, W), not yet rounded. Arguments and InputError are those of `attacked`."""
    function = attacks.find(attack.method)
    wants = inspect.signature(function).parameters
    arguments = attack.run_arguments()
    if arguments.get("seed", 0) is None:
        # By default, torchattacks would take the time of day.
        arguments["seed"] = int(rng(params.seed, "torchattacks", name).integers(2**31))
    images, labels = classifier.to_images(batch.image, device), on_device(batch.label, device)
    extra: dict[str, Tensor] = {}
    if "noise" in wants:
        extra["noise"] = _noise(params.seed, name, batch, tuple(images.shape[1:]), device)
    if "starts" in wants:
        shape = (arguments["restarts"], *images.shape[1:])
        extra["starts"] = _noise(params.seed, name, batch, shape, device)
    if "partners" in wants:
        extra["partners"] = classifier.to_images(pool.image[_partners(params.seed, name, batch, pool)], device)
    with torch_seed(params.seed, "attack", name, int(batch.index[0])):
        try:
            return engine.run(partial(function, **arguments), model, images, labels, extra)
        except Exception as error:
            if not attack.library_class:
                raise
            words = " ".join(f"{type(error).__name__} {error}".split())
            raise InputError(f"{params.describe(name, attack)}: {attack.method} failed: {words}") from error


def _partners(seed: int, name: str, batch: store.Images, pool: store.Images) -> np.ndarray:
    """Draw, for each image of the batch, a row (N,) of the pool that is of another class."""
    uniforms = Draws(seed, "partner", name).uniform(batch.index, 1)[:, 0]
    partners = np.empty(len(batch), np.int64)
    for label in np.unique(batch.label):
        others, rows = np.flatnonzero(pool.label != label), batch.label == label
        partners[rows] = others[(uniforms[rows] * len(others)).astype(np.int64)]
    return partners


def _noise(seed: int, name: str, batch: store.Images, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw standard normal numbers (N, *shape), a function of each image's index."""
    return on_device(Draws(seed, "noise", name).normal(batch.index, shape), device)
