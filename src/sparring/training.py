"""The one training loop, and the pretrained net; structures.py adds the steps and draws of the defences."""

import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparring import checkpoints, distributed, files, networks, progress, store, transforms
from sparring.checkpoints import Checkpoint
from sparring.device import channels_last, choose, precision, rng, torch_seed
from sparring.networks import Classifier
from sparring.params import InputError, Params, Training, check_classes

# rows (N,), images (n, 3, H, W), labels (N,), adversarial (N,): only the images are but this process's n of N.
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class Step(NamedTuple):
    """How a structure learns from one batch.

    run: takes images (N, 3, H, W) in [0, 1], labels (N,) and which of them are adversarial (N,) bool; updates the nets
    and returns sums over the batch, on the device: fetching them every step would stall it. One of several processes
    passes its slice of the images, with the labels of the whole batch, and gets the sums over its slice.
    optimizers: those that `run` steps, for the loop to lower their learning rates.
    helpers: nets that `run` trains beside the classifier.
    attack: where there is one, makes of (images, labels, epoch, number of the batch) the images that `run` gets, in
    the same shapes.
    """

    run: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
    optimizers: list[torch.optim.Optimizer]
    helpers: tuple[nn.Module, ...] = ()
    attack: Callable[[Tensor, Tensor, int, int], Tensor] | None = None


class Gallery:
    """Every version of every training image in memory, as stored: version 0 is clean, the others one attack each.

    image: (V, N, H, W, C) uint8, or float16 where an attack is stored so; on the device, but where it would take more
    than half of a GPU's free memory on the CPU.  label: (N,).
    adversarial: (V, N), False also where an attack changed nothing.
    """

    def __init__(
        self, image: np.ndarray, clean: store.Images, attacked: list[store.Images], device: torch.device
    ) -> None:
        """image: as above.  clean, attacked: the rest of the stores, of which label and linf are used."""
        fits = device.type != "cuda" or image.nbytes <= torch.cuda.mem_get_info(device)[0] / 2
        self.image = torch.from_numpy(image).to(device if fits else "cpu")
        self._note(clean, attacked, device)

    def _note(self, clean: store.Images, attacked: list[store.Images], device: torch.device) -> None:
        changed = np.stack([np.zeros(len(clean), bool), *(images.columns["linf"] > 0 for images in attacked)])
        self.label = torch.from_numpy(clean.label).to(device)
        self.adversarial = torch.from_numpy(changed).to(device)
        self.device = device

    def order(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The rows in the order in which an epoch visits them, in one window or several."""
        return [rng(seed, "order", epoch).permutation(len(self.label))]

    def batches(self, windows: list[np.ndarray], version: np.ndarray, size: int, skip: int) -> Iterator[Batch]:
        """The epoch's batches of `size` images, but for the first `skip`.  version: that of each image (N,)."""
        drawn, visits = (torch.from_numpy(each).to(self.image.device) for each in (version, np.concatenate(windows)))
        for rows in visits.tensor_split(batch_stops(len(visits), size)[:-1].tolist())[skip:]:
            yield rows, *self.batch(drawn[rows], rows)

    def batch(self, version: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = networks.to_images(self.image[distributed.mine(version), distributed.mine(rows)], self.device)
        return images, self.label[rows], self.adversarial[version, rows]


class Stream(Gallery):
    """The same where the versions do not fit into memory: read by row group, a window of images ahead of the training.

    An epoch goes from window to window, and visits the images of a window, each in its one drawn version, in a drawn
    order. A window has so many row groups, at least one, that two windows take `budget` bytes, and no more than an
    eighth of the images, so that reading overlaps with training. They are drawn evenly from the whole of the store:
    where it is sorted by class, as from folders, neighbouring row groups are of the same class.
    """

    def __init__(
        self,
        versions: list[store.Groups],
        clean: store.Images,
        attacked: list[store.Images],
        budget: float,
        device: torch.device,
    ) -> None:
        """versions: the stores' images.  clean, attacked: the rest of the stores.

        Raises InputError where the stores' row groups differ.
        """
        self._note(clean, attacked, device)
        self._versions, first = versions, versions[0]
        for other in versions[1:]:
            if not np.array_equal(other.rows, first.rows):
                raise InputError(f"{other.path} has other row groups than {first.path}; delete it and run `dvc repro`")
        self._rows, self._starts = first.rows, first.starts
        self._dtype = np.result_type(*(version.dtype for version in versions))
        bytes_a_group = int(first.rows.max() * np.prod(first.shape)) * self._dtype.itemsize
        groups = max(1, min(int(budget / 2) // bytes_a_group, len(first.rows) // 8))
        self._windows = -(-len(first.rows) // groups)

    def order(self, seed: int, epoch: int) -> list[np.ndarray]:
        chance = rng(seed, "groups", epoch)
        # Of so many neighbouring row groups, each window gets one.
        neighbours = range(0, len(self._rows), self._windows)
        parts = [chance.permutation(np.arange(len(self._rows))[start : start + self._windows]) for start in neighbours]
        windows = []
        for number in range(self._windows):
            here = [part[number] for part in parts if number < len(part)]
            rows = [self._starts[group] + np.arange(self._rows[group]) for group in here]
            windows.append(rng(seed, "order", epoch, number).permutation(np.concatenate(rows)))
        return windows

    def batches(self, windows: list[np.ndarray], version: np.ndarray, size: int, skip: int) -> Iterator[Batch]:
        visits, ends = np.concatenate(windows), np.cumsum([len(window) for window in windows])
        stops = batch_stops(len(visits), size)
        start = stops[skip - 1] if skip else 0
        left = np.empty((0, *self._versions[0].shape), self._dtype)  # of a window that did not fill its last batch
        first = int(np.searchsorted(ends, start, "right"))
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self._read, window, version[window]) for window in windows[first : first + 1]]
            for number, end in enumerate(ends[first:], first + 1):
                images = ahead.pop().result()
                ahead = [reader.submit(self._read, window, version[window]) for window in windows[number : number + 1]]
                used = start + len(left) - (end - len(images))
                for stop in stops[(stops > start) & (stops <= end)]:
                    here, more = visits[start:stop], stop - start - len(left)
                    shown = np.concatenate([left, images[used : used + more]])
                    start, used, left = stop, used + more, left[:0]
                    rows, drawn = (torch.from_numpy(each).to(self.device) for each in (here, version[here]))
                    pixels = networks.to_images(distributed.mine(shown), self.device)
                    yield rows, pixels, self.label[rows], self.adversarial[drawn, rows]
                left = np.concatenate([left, images[used:]])

    def _read(self, rows: np.ndarray, version: np.ndarray) -> np.ndarray:
        """The images (N, H, W, C) of these rows, each in its version; a row group is read once for each version."""
        images = np.empty((len(rows), *self._versions[0].shape), self._dtype)
        group = np.searchsorted(self._starts, rows, "right") - 1
        kind = group * len(self._versions) + version
        places = np.argsort(kind, kind="stable")
        kinds, starts = np.unique(kind[places], return_index=True)
        for which, here in zip(kinds, np.split(places, starts[1:]), strict=True):
            number, drawn = divmod(int(which), len(self._versions))
            images[here] = self._versions[drawn].read(number)[rows[here] - self._starts[number]]
        return images


def gallery(params: Params, attacks: list[str], source: str, device: torch.device) -> Gallery:
    """The training images, clean and under these attacks: in memory where store.memory_budget allows, else streamed.

    source: digest of the net that the attacks have to have been made against; InputError where they were not, or where
    a store is missing, damaged or of other images.
    """
    paths = [files.CLEAN / "train.parquet", *(files.ADVERSARIAL / name / "train.parquet" for name in attacks)]
    clean, attacked = store.read(paths[0], ()), []
    for path in paths[1:]:
        images = store.read(path, ("linf",))
        store.check_rows(clean, images, path)
        store.check_source(images, source, path)
        attacked.append(images)
    versions = [store.Groups(path) for path in paths]
    dtype = np.result_type(*(version.dtype for version in versions))
    shape = (len(paths), len(clean), *versions[0].shape)
    if math.prod(shape) * dtype.itemsize > params.store.memory_budget * 1e9:
        return Stream(versions, clean, attacked, params.store.memory_budget * 1e9, device)
    image = np.empty(shape, dtype)  # filled by row group, so that no image is in memory twice
    for pixels, version in zip(image, versions, strict=True):
        for number, start in enumerate(version.starts):
            pixels[start : start + version.rows[number]] = version.read(number)
    return Gallery(image, clean, attacked, device)


def plain_step(net: Classifier, settings: Training, dtype: torch.dtype) -> Step:
    """Cross-entropy alone: the pretrained net and the paper's "Adv" row."""
    optimizer = sgd(net, settings.learning_rate, settings)

    def forward(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, dtype):
            logits = net(images)
        return F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing), logits

    forward_of_all = distributed.parallel(net, forward)

    def run(images: Tensor, labels: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        whole, labels = len(labels), distributed.mine(labels)
        loss, logits = forward_of_all(images, labels)
        update(optimizer, distributed.weighted(loss, whole))
        return {"loss": loss.detach() * len(labels), "accuracy": (logits.argmax(1) == labels).sum()}

    return Step(run, [optimizer])


def sgd(module: nn.Module, learning_rate: float, settings: Training) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(), learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def scheduler(optimizer: torch.optim.Optimizer, settings: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Moves the learning rate over `steps` steps, as `training.schedule` says: docs/method.md has the curves."""
    schedules = torch.optim.lr_scheduler
    if settings.schedule == "step":
        return schedules.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])
    if settings.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimizer, steps)
    if settings.schedule == "one_cycle":
        return schedules.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps, cycle_momentum=False)
    return schedules.LambdaLR(optimizer, lambda step: 1.0)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def fit(
    params: Params,
    name: str,
    net: Classifier,
    step: Step,
    gallery: Gallery,
    draw: Callable[[int, np.ndarray], np.ndarray],
    validation: store.Images,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train for params.training.epochs epochs; returns a row of means an epoch. What the nets hold in the end is what
    params.training.keep and ema say.

    draw: (epoch, order of visits) → version of each image (N,).  validation: clean images to watch, and for `keep:
    best` to choose by.
    checkpoint: where the state is saved at times, and taken from at the start: nets, optimizers and schedules, sums of
    the epoch, history, and torch's generators, as dropout draws from them; everything else that is drawn is a function
    of the seed and the epoch. So a run that was killed ends with the bits of one that was not.
    Of several processes, each calls this, all end with the same nets, and the first one saves.
    Raises InputError where a loss is no longer a number or there is nothing to choose by; SystemExit on SIGTERM and
    Ctrl-C, once the state is saved.
    """
    settings, device = params.training, gallery.device
    checkpoint = checkpoint or Checkpoint(None)
    if settings.keep == "best" and not len(validation):
        raise InputError(f"{name}: training.keep is best, but there are no validation images to choose by; use last")
    count = len(gallery.label)
    if distributed.size() > 1 and count < distributed.LEAST * distributed.size():
        raise InputError(f"{name}: {count} training images are too few for {distributed.size()} training.devices")
    steps = settings.epochs * len(batch_stops(count, settings.batch_size))
    schedulers = [scheduler(optimizer, settings, steps) for optimizer in step.optimizers]
    average = None
    if settings.ema:
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
    changing: list[Any] = [net, *step.helpers, *step.optimizers, *schedulers, *([average] if average else [])]
    kept = [average.module if average else net, *step.helpers]
    best: list[dict[str, Tensor]] = []
    history: list[dict[str, float]] = []
    totals: dict[str, Tensor] = {}
    first = skip = 0  # the epoch to go on in, and its batches that are done
    random: list[Tensor] = []
    if (state := checkpoint.load()) is not None:
        for each, saved in zip(changing, state["changing"], strict=True):
            each.load_state_dict(saved)
        history, first, skip, best = state["history"], state["epoch"], state["batches"], state["best"]
        random = [each[distributed.rank()] for each in state["random"]]
        totals = {key: each[distributed.rank()].to(device) for key, each in state["totals"].items()}
        del state, saved  # a copy of everything
        print(f"{name}: going on {_place(first, skip, settings.epochs)}", flush=True)

    agree = distributed.Agreement()
    shown = distributed.first()
    with checkpoint.stoppable() as stopped, progress.bar(name, settings.epochs * count, shown) as advance:

        def save_state(epoch: int, batches: int, totals: dict[str, Tensor], always: bool = False) -> None:
            ending = stopped() or distributed.orphaned()
            stop, due = agree(ending, distributed.first() and checkpoint.due(), now=always)
            if always or stop or due:
                state = {
                    "changing": [each.state_dict() for each in changing],
                    "best": best,
                    "history": history,
                    "epoch": epoch,
                    "batches": batches,
                    "totals": {key: distributed.gather(value) for key, value in totals.items()},
                    "random": [distributed.gather(each) for each in checkpoints.random_state(device)],
                }
                if distributed.first():
                    checkpoint.save(state)
            if stop:
                distributed.wait()  # until it is saved
                raise SystemExit(f"{name}: stopped; the same command goes on {_place(epoch, batches, settings.epochs)}")

        advance(first * count + min(skip * settings.batch_size, count))
        for epoch in range(first, settings.epochs):
            windows = gallery.order(params.seed, epoch)
            version = draw(epoch, np.concatenate(windows))
            area = (settings.crop_area[0], settings.crop_area[1])
            crops = transforms.draw_crops(rng(params.seed, "crop", epoch), count, area, settings.horizontal_flip)
            crops = crops.to(device)
            net.train()
            with torch_seed(params.seed, "train", name, epoch, *([distributed.rank()] if distributed.rank() else [])):
                if skip:
                    checkpoints.set_random_state(random, device)
                batches = gallery.batches(windows, version, settings.batch_size, skip)
                for number, (rows, images, labels, adversarial) in enumerate(batches, skip + 1):
                    images = transforms.crop(images, crops[distributed.mine(rows)])
                    if step.attack is not None:
                        images = step.attack(images, labels, epoch, number)
                    for key, value in step.run(images, labels, adversarial).items():
                        totals[key] = totals.get(key, 0) + value
                    distributed.average_norms(net)
                    for each in schedulers:
                        each.step()
                    if average is not None:
                        average.update_parameters(net)
                    advance(len(rows))
                    save_state(epoch, number, totals)
            means = {key: float(value) / count for key, value in distributed.total(totals).items()}
            totals, skip = {}, 0
            broken = [key for key, value in means.items() if not np.isfinite(value)]
            if broken:
                if distributed.first():
                    checkpoint.delete()  # to go on from there would only end here again
                raise InputError(
                    f"{name}: {broken[0]} is {means[broken[0]]} in epoch {epoch}; "
                    f"lower training.learning_rate ({settings.learning_rate})"
                )
            predicted = networks.predict(kept[0], validation.image, params.store.batch_size, device).argmax(1)
            # pandas' mean of no images is NaN, without a warning.
            means["validation_accuracy"] = float(pd.Series(predicted == validation.label).mean())
            if settings.keep == "best" and all(
                means["validation_accuracy"] > row["validation_accuracy"] for row in history
            ):
                best = [{key: value.clone() for key, value in each.state_dict().items()} for each in kept]
            history.append({"epoch": epoch, **means})
            print(f"{name}: epoch {epoch + 1}/{settings.epochs}, " + _line(means), flush=True)
            save_state(epoch + 1, 0, totals, always=epoch + 1 == settings.epochs)
    for each, chosen in zip([net, *step.helpers], best or [each.state_dict() for each in kept], strict=True):
        each.load_state_dict(chosen)
    return pd.DataFrame(history)


def _place(epoch: int, batches: int, epochs: int) -> str:
    within = f" and {batches:,} batches" if batches else ""
    return f"after epoch {epoch}/{epochs}{within}"


def batch_stops(count: int, size: int) -> np.ndarray:
    """Where the batches of an epoch of `count` visits end: after every `size` of them, and the smaller last one; but a
    single image left over joins the batch before it, as BatchNorm has nothing to average where a map is 1×1. Several
    processes need two images each."""
    stops = np.append(np.arange(size, count, size), count)
    short = len(stops) > 1 and stops[-1] - stops[-2] < distributed.LEAST * distributed.size()
    return np.delete(stops, -2) if short else stops


def _line(means: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in means.items() if not np.isnan(value))


def create(params: Params, what: str, classes: int) -> Classifier:
    """A net with random weights drawn for `what`."""
    with torch_seed(params.seed, "weights", what):
        return networks.create(params.network, classes, params.data.image_size)


def save(params: Params, name: str, path: Path, module: nn.Module, dtype: torch.dtype, clean: store.Images) -> None:
    """Write a trained module as safetensors, with what one needs to know to use it."""
    facts = {
        "name": name,
        "network": params.network.model_dump(),
        "classes": clean.metadata["classes"],
        "image_size": params.data.image_size,
        "precision": str(dtype).removeprefix("torch."),
        "epochs": params.training.epochs,
    }
    networks.save_model(module, path, facts)


def save_history(name: str, history: pd.DataFrame) -> None:
    """Write the training curve as data/history/<name>.csv."""
    with files.replacing(files.HISTORY / f"{name}.csv") as path:
        history.to_csv(path, index=False, float_format="%.6f")


def pretrain(params: Params) -> None:
    """Train the pretrained net on the clean training images and save it."""
    device = choose(params)
    dtype = precision(params, device)
    with progress.timed("pretrain", device, dtype, distributed.size()) as done:
        inputs = [files.CLEAN / f"{split}.parquet" for split in ("train", "validation")]
        clean, validation = store.read(inputs[0], ()), store.read(inputs[1])
        check_classes(params, len(clean.metadata["classes"]))  # of all attacks, before hours of training
        settings = [params.seed, params.deterministic, params.network, params.training, checkpoints.machine(device)]
        settings += [params.store.batch_size, params.store.memory_budget, distributed.size()]
        unfinished = checkpoints.folder("pretrain", settings, inputs, __name__, device, dtype)
        checkpoint = Checkpoint(unfinished / f"{params.seed}.pt")
        net = create(params, "pretrained", len(clean.metadata["classes"]))
        channels_last(net, device)
        history = fit(
            params,
            "pretrained",
            net,
            plain_step(net, params.training, dtype),
            gallery(params, [], "", device),
            lambda epoch, visits: np.zeros(len(visits), np.int64),
            validation,
            checkpoint,
        )
        distributed.wait()  # or one may still read the checkpoint that another removes
        if distributed.first():
            save(params, "pretrained", files.PRETRAINED, net, dtype, clean)
            save_history("pretrained", history)
            count = len(clean) * params.training.epochs
            done(count, f"{params.training.epochs} epochs of {len(clean):,} images", checkpoint.earlier)
            shutil.rmtree(unfinished)
