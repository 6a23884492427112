"""Measures this machine's rates for benchmarks/full_size.py: it times a few batches of each kind of work."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import attacks as attack_benchmark
import numpy as np
import planning
import torch
import training as training_benchmark
from torch import Tensor

from sparring import device, store
from sparring.attacks import engine, generation, storage
from sparring.attacks.losses import loss_gradient
from sparring.data import augmentation
from sparring.defences import evolving
from sparring.defences.evolving import EvolvingOpponents
from sparring.defences.joint import joint_step
from sparring.layout import HERE, replacing
from sparring.models import classifier, networks
from sparring.models.detector import TransformerDetector
from sparring.params import Params
from sparring.params.attacks import Attack
from sparring.training import graphs
from sparring.training.loop import Opponents, learn_from
from sparring.training.results import new_net
from sparring.training.steps import Step, plain_step

LARGER = 512  # images a batch, tried beside the profile's own on a GPU
BESIDE = 2.5  # how much faster three attacks were side by side than one after another on an H100
SIDE_BY_SIDE = 3  # processes at most, for which BESIDE was measured
CONTEXT_BYTES = 2e9  # that a process takes on a GPU beside its tensors
TIMED = 5  # steps
ATTACKED = {"cuda": 512, "cpu": 16}  # images
CW_STEPS = 10


def rates(settings: Params, start: float) -> planning.Rates:
    """Measure the rates of random nets of these parameters on the prepared images.

    start: seconds that a process takes until it computes. The labels are the net's own predictions, so that attacks
    start from correctly classified images, as they mostly do for a trained net.
    """
    on = device.choose(settings)
    dtype = device.precision(settings, on)
    clean = store.read(HERE.clean / "train.parquet")
    net = new_net(settings, "pretrained", len(clean.metadata["classes"]))
    device.channels_last(net, on)
    sizes = [settings.training.batch_size]
    sizes += [LARGER] if on.type == "cuda" and sizes[0] < LARGER <= len(clean) else []
    steps = {str(size): _steps(settings, clean, size, on, dtype) for size in sizes}
    sample = clean[: ATTACKED[on.type]]
    probabilities = classifier.predict(net, sample.image, settings.store.batch_size, on)
    sample = store.Images(sample.index, probabilities.argmax(1), sample.image, {}, sample.metadata)
    attacked = {
        name: _attack(settings, name, attack, net, sample, clean, on, dtype)
        for name, attack in settings.attacks.items()
    }
    images, labels = classifier.to_images(sample.image, on), torch.from_numpy(sample.label).to(on)
    exact = engine.Fast(net, on, torch.float32)
    gradient = _seconds(lambda: loss_gradient(exact, images, labels), on)
    prediction = _seconds(lambda: classifier.predict(net, sample.image, settings.store.batch_size, on), on)
    return planning.Rates(
        source=f"measured on {device.hardware(on)}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}",
        at_once=_at_once(on),
        steps=steps,
        attacks=attacked,
        gradients=len(sample) / gradient,
        predict=len(sample) / prediction,
        prepare=json.loads((HERE.timings / "prepare.json").read_text())["images_per_second"],
        start=start,
        beside=BESIDE if on.type == "cuda" else 1.0,
    )


def _at_once(on: torch.device) -> int:
    """Return how many processes the GPU has room for, each with as much memory as this one has used at most."""
    if on.type != "cuda":
        return 1
    used = torch.cuda.max_memory_allocated(on) + CONTEXT_BYTES
    return max(1, min(SIDE_BY_SIDE, int(torch.cuda.get_device_properties(on).total_memory / used)))


def write(settings: Params, path: Path, process_start: float) -> None:
    """Measure and write the rates.  process_start: when this process was requested (time.time)."""
    device.choose(settings)
    torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    start = time.time() - process_start
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(asdict(rates(settings, start)), indent=2) + "\n")


def _seconds(work: Callable[[], object], on: torch.device, times: int = 3) -> float:
    """Return the median time of a few runs, after one that is not timed."""
    work()
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _steps(settings: Params, clean: store.Images, size: int, on: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the images a second of a plain step, a joint step, and one with evolving opponents, as in a training:
    with crops, and on a GPU as a graph."""
    training = settings.training.model_copy(update={"batch_size": size})
    settings, batch = settings.model_copy(update={"training": training}), clean[:size]
    pixels, labels = classifier.to_images(batch.image, on), torch.from_numpy(batch.label).to(on)
    rows = torch.arange(size, device=on)
    adversarial = rows % 2 == 0
    view = augmentation.draw(training, size, 0, 0, on)
    rates = {}
    for name in ("adv", "ours", "evolving"):
        step, opponents, net = _trained(settings, name, batch, on, dtype)
        learn = graphs.captured(partial(learn_from, net, step, opponents, None), step.optimizers, training, on)

        def several(learn: graphs.Learn = learn) -> None:
            for _ in range(TIMED):
                learn(rows, view.apply(pixels), labels, adversarial, *view, None)

        rates[name] = size * TIMED / _seconds(several, on)
    return rates


def _trained(
    settings: Params, name: str, images: store.Images, on: torch.device, dtype: torch.dtype
) -> tuple[Step, Opponents, classifier.Classifier]:
    """Create a random net of a kind of structure, its step, and its opponents.  images: all that it learns from."""
    classes = len(images.metadata["classes"])
    net, pretrained = (new_net(settings, role, classes) for role in ("target", "pretrained"))
    device.channels_last(net, on).train()
    step, opponents = plain_step(net, settings.training, dtype), Opponents()
    if name == "ours":
        helper = device.channels_last(networks.frozen(pretrained), on)
        detector = TransformerDetector(settings.detector, classifier.map_shapes(net, settings.data.image_size)).to(on)
        step = joint_step(net, helper, detector, settings.training, settings.detector, dtype)
    if name == "evolving":
        zeros = np.zeros_like(images.image, np.int8)
        draw_versions = evolving.evolving_only(settings.evolving, settings.seed)
        opponents = EvolvingOpponents(net, settings.evolving, 0.0, dtype, draw_versions, lambda epoch: zeros)
        opponents.versions(0, np.arange(len(images)))
    return step, opponents, net


def _attack(
    settings: Params,
    name: str,
    attack: Attack,
    net: classifier.Classifier,
    sample: store.Images,
    pool: store.Images,
    on: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Return the images a second of an attack alone and of storing. For C&W they are scaled to 100 steps."""
    steps = CW_STEPS if attack.method == "cw" else None
    timed_attack = attack.model_copy(update={"arguments": attack.arguments | ({"steps": steps} if steps else {})})
    model = engine.Fast(net, on, dtype)
    labels = torch.from_numpy(sample.label).to(on)
    results: list[Tensor] = []

    def attack_alone() -> None:
        results[:] = [generation.attack_batch(settings, timed_attack, name, model, sample, pool, on)]

    clean = torch.from_numpy(sample.image).to(on)
    bounds: dict[str, float] = {}

    def storing() -> None:
        judge = storage.Judge(net, settings.store.batch_size, timed_attack.predictions, bounds)
        storage.store(net, model, clean, results[0], labels, timed_attack, settings.store, judge).cpu()
        judge.predictions()
        bounds.update({column: fact["bound"] for column, fact in judge.facts().items()})  # as after a first shard

    seconds = _seconds(attack_alone, on, 1)
    share = 100 / CW_STEPS if steps else 1.0
    return {"attack": len(sample) / (seconds * share), "store": len(sample) / _seconds(storing, on, 1)}


def benchmark(settings: Params, path: Path) -> None:
    """Measure rows of benchmarks/attacks.py (with torchattacks) and benchmarks/training.py, as many as time allows, and
    write each at once. The working folder has to be that of a run whose attacks are stored."""
    calls: list[tuple[str, Callable[[], dict[str, object]]]] = [
        (f"step {name}", partial(training_benchmark.measure, name, None, None, TIMED, 1, Path()))
        for name in ("bare", "adv", "ours_full_4", "ours_low_2")
    ]
    for name in attack_benchmark.SETTINGS:
        for library in attack_benchmark.ROWS[name][:2]:
            count = 16 if library != "sparring" and name in ("deepfool", "nst") else 256
            calls.append((f"{name} by {library}", partial(attack_benchmark.measure, name, library, count, 1)))
    rows: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    for name, call in calls:
        if name in rows:
            continue
        try:
            rows[name] = call()
        except Exception as error:  # a library may fail in any way; the others' rows count all the same
            rows[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
