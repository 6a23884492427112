"""The one training loop, which pretraining and every defence run through."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparring import checkpoints, distributed, progress, store
from sparring.checkpoints import Checkpoint
from sparring.data import augmentation
from sparring.data.augmentation import Augmentation
from sparring.data.transforms import Draw, RandomTransform
from sparring.device import torch_seed
from sparring.models import classifier
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.sections import Training
from sparring.training import graphs
from sparring.training.average import MovingAverage
from sparring.training.collapse import COLLAPSE, collapsed_at
from sparring.training.gallery import Batch, Gallery, batch_stops
from sparring.training.steps import Penalty, Step, scheduler

Monitor = Callable[[Classifier, int], dict[str, float]]
"""What is measured of the net after so many epochs: shares of images; nothing in an epoch that is not watched."""
CHOSEN_BY = {"best": "validation_accuracy", "best_robust": "pgd_accuracy"}


class Shown(NamedTuple):
    """What the net learns from in place of a batch.

    images: (n, 3, H, W) in [0, 1].  adversarial: which of the whole batch are (N,).
    penalty: of the net's logits of these images, what is added to the loss.
    """

    images: Tensor
    adversarial: Tensor
    penalty: Penalty | None = None


class Opponents:
    """Whom the net in training meets. These are none: every image comes clean. A kind overrides what it does otherwise.

    The loop calls `versions` once an epoch, `draw` and `show` once a batch, and keeps `state_dict` in the checkpoint.
    """

    def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
        """The stored version in which each image (N,) comes in this epoch: 0 is clean, i the i-th attack of the
        gallery. visits: the images in the order in which the epoch visits them (N,)."""
        return np.zeros(len(visits), np.int64)

    def draw(self, batch: Batch, epoch: int, number: int) -> Tensor | None:
        """Random numbers for `show`, which draws none itself.  number: the batch's place in the epoch, from 1."""
        return None

    def show(self, batch: Batch, view: Augmentation, seen: Draw, drawn: Tensor | None) -> Shown:
        """What the net learns from in place of a batch, whose images were augmented. It may be in a CUDA graph, so what
        changes from batch to batch is in its arguments, or in tensors that stay where they are.

        view: how, image by image.  seen: the batch's draw of the structure's transform, through which the net will see
        what is returned.  drawn: by `draw`.
        """
        return Shown(batch.images, batch.adversarial)

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs to end with the same bytes: numbers, strings, lists, dictionaries, tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""


class _State:
    """A training as its checkpoint keeps it: what changes from batch to batch, and how far it has come."""

    def __init__(
        self, params: Params, name: str, net: Classifier, step: Step, opponents: Opponents, count: int
    ) -> None:
        settings = params.training
        self.name, self.epochs = name, settings.epochs
        steps = settings.epochs * len(batch_stops(count, settings.batch_size))
        self.schedulers = [scheduler(optimizer, settings, steps) for optimizer in step.optimizers]
        self.average = MovingAverage(net, settings.ema) if settings.ema else None
        self.trained = [net, *step.helpers]
        self.watched: Classifier = self.average.net if self.average else net  # type: ignore[assignment]
        self.kept = [self.watched, *step.helpers]
        self.changing: list[Any] = [*self.trained, *step.optimizers, *self.schedulers, opponents]
        self.changing += [self.average] if self.average else []
        self.best: list[dict[str, Tensor]] = []
        self.history: list[dict[str, float]] = []
        self.totals: dict[str, Tensor] = {}  # sums over the epoch so far
        self.epoch = self.batches = 0  # the epoch that is under way, and its batches that are done
        self.random: list[Tensor] = []  # torch's generators, where an epoch is gone on with
        self._agree = distributed.Agreement()

    def load(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Go on where the checkpoint was saved, if there is one."""
        if (state := checkpoint.load()) is None:
            return
        for each, saved in zip(self.changing, state["changing"], strict=True):
            each.load_state_dict(saved)
        self.history, self.best = state["history"], state["best"]
        self.epoch, self.batches = state["epoch"], state["batches"]
        self.random = [each[distributed.rank()] for each in state["random"]]
        self.totals = {key: each[distributed.rank()].to(device) for key, each in state["totals"].items()}
        print(f"{self.name}: going on {self._place()}", flush=True)

    def save(self, checkpoint: Checkpoint, stopped: Callable[[], bool], device: torch.device) -> None:
        """Save where it is time, at the end, and where the run was told to stop, which then raises SystemExit."""
        last = self.epoch == self.epochs
        ending = stopped() or distributed.orphaned()
        stop, due = self._agree(ending, distributed.first() and checkpoint.due(), now=last)
        if last or stop or due:
            state = {
                "changing": [each.state_dict() for each in self.changing],
                "best": self.best,
                "history": self.history,
                "epoch": self.epoch,
                "batches": self.batches,
                "totals": {key: distributed.gather(value) for key, value in self.totals.items()},
                "random": [distributed.gather(each) for each in checkpoints.random_state(device)],
            }
            if distributed.first():
                checkpoint.save(state)
        if stop:
            distributed.wait()  # until it is saved
            raise SystemExit(f"{self.name}: stopped; the same command goes on {self._place()}")

    def end_epoch(self, means: dict[str, float], keep: str) -> None:
        """Note the epoch's means, and what the nets hold where what `training.keep` chooses by has never been as high.
        Where that is not measured, nothing is chosen."""
        by = CHOSEN_BY.get(keep)
        if by in means and all(means[by] > row.get(by, -1) for row in self.history):
            self.best = [{key: value.clone() for key, value in each.state_dict().items()} for each in self.kept]
        self.history.append({"epoch": self.epoch, **means})
        self.totals, self.batches = {}, 0
        self.epoch += 1

    def choose(self) -> None:
        """Let the nets hold what was the best, where that is kept, else what they came to or its average."""
        chosen = self.best or [each.state_dict() for each in self.kept]
        for each, state in zip(self.trained, chosen, strict=True):
            each.load_state_dict(state)

    def _place(self) -> str:
        within = f" and {self.batches:,} batches" if self.batches else ""
        return f"after epoch {self.epoch}/{self.epochs}{within}"


def fit(
    params: Params,
    name: str,
    net: Classifier,
    step: Step,
    gallery: Gallery,
    opponents: Opponents,
    validation: store.Images,
    checkpoint: Checkpoint | None = None,
    transform: RandomTransform | None = None,
    monitor: Monitor | None = None,
) -> list[dict[str, float]]:
    """Train for params.training.epochs epochs; returns a row of means an epoch. What the nets hold in the end is what
    params.training.keep and ema say.

    validation: clean images to watch, and for `keep: best` to choose by.  monitor: likewise for `keep: best_robust`.
    transform: that through which the net sees every image, drawn anew for each image and epoch; None for none.
    checkpoint: where the state is saved at times, and taken from at the start: nets, optimizers, schedules, opponents,
    sums of the epoch, history, and torch's generators, from which dropout draws; all else is drawn as a function of
    seed and epoch. So a run that was killed ends with the bits of one that was not.
    Of several processes, each calls this, all end with the same nets, and the first one saves.
    Raises InputError where a loss is no longer a number or there is nothing to choose by; SystemExit on SIGTERM and
    Ctrl-C, once the state is saved.
    """
    settings, device, count = params.training, gallery.device, len(gallery.label)
    checkpoint = checkpoint or Checkpoint(None)
    _check_enough(name, settings, count, len(validation))
    state = _State(params, name, net, step, opponents, count)
    state.load(checkpoint, device)
    learn = graphs.captured(partial(learn_from, net, step, opponents, state.average), step.optimizers, settings, device)
    bar = progress.bar(name, settings.epochs * count, distributed.first())
    with checkpoint.stoppable() as stopped, bar as advance:

        def after_batch(images: int) -> None:
            advance(images)
            state.save(checkpoint, stopped, device)

        advance(state.epoch * count + min(state.batches * settings.batch_size, count))
        while state.epoch < settings.epochs:
            _run_epoch(params, state, net, learn, gallery, opponents, transform, after_batch)
            means = {key: float(value) / count for key, value in distributed.total(state.totals).items()}
            _check_finite(name, state.epoch, means, settings, checkpoint)
            means |= _validate(params, state, validation, monitor, device)
            state.end_epoch(means, settings.keep)
            _tell(state, means)
            advance(0, f"PGD {pgd:.3f}" if (pgd := means.get("pgd_accuracy")) is not None else "")
            state.save(checkpoint, stopped, device)
    state.choose()
    return state.history


def _check_enough(name: str, settings: Training, count: int, validation: int) -> None:
    if settings.keep != "last" and not validation:
        raise InputError(
            f"{name}: training.keep is {settings.keep}, but there are no validation images to choose by; use last"
        )
    if distributed.size() > 1 and count < distributed.LEAST * distributed.size():
        raise InputError(f"{name}: {count} training images are too few for {distributed.size()} training.devices")


def _validate(
    params: Params, state: _State, validation: store.Images, monitor: Monitor | None, device: torch.device
) -> dict[str, float]:
    """The share of the validation images that the net gets right, NaN without any, and what the monitor measures."""
    predicted = classifier.predict(state.watched, validation.image, params.store.batch_size, device).argmax(1)
    right = predicted == validation.label
    found = {"validation_accuracy": float(right.mean()) if len(right) else math.nan}
    return found | (monitor(state.watched, state.epoch + 1) if monitor else {})


def _check_finite(name: str, epoch: int, means: dict[str, float], settings: Training, checkpoint: Checkpoint) -> None:
    broken = [key for key, value in means.items() if not np.isfinite(value)]
    if broken:
        if distributed.first():
            checkpoint.delete()  # to go on from there would only end here again
        raise InputError(
            f"{name}: {broken[0]} is {means[broken[0]]} in epoch {epoch}; "
            f"lower training.learning_rate ({settings.learning_rate})"
        )


def _run_epoch(
    params: Params,
    state: _State,
    net: Classifier,
    learn: graphs.Learn,
    gallery: Gallery,
    opponents: Opponents,
    transform: RandomTransform | None,
    after_batch: Callable[[int], None],
) -> None:
    """Train on what is left of an epoch, and add up in state.totals what the step returns.

    learn: as `learn_from`.  after_batch: told the number of images of each batch that is done.
    """
    settings, device, epoch = params.training, gallery.device, state.epoch
    windows = gallery.order(params.seed, epoch)
    version = opponents.versions(epoch, np.concatenate(windows))
    views = augmentation.draw(settings, len(gallery.label), params.seed, epoch, device)
    net.train()
    part = [distributed.rank()] if distributed.rank() else []
    with torch_seed(params.seed, "train", state.name, epoch, *part):
        if state.batches:
            checkpoints.set_random_state(state.random, device)
        for batch in gallery.batches(windows, version, settings.batch_size, state.batches):
            own = distributed.mine(batch.rows)
            view = views.of(own)
            batch = batch._replace(images=view.apply(batch.images))
            through: dict[str, Draw] = {}
            if transform is not None and transform.settings.training:
                shape = tuple(batch.images.shape[1:])
                through["seen"] = transform.draw(shape, own.cpu().numpy(), params.seed, "transform", epoch)
            rows = batch.rows.to(device)  # where images are too many for a GPU, they come with rows on the CPU
            drawn = opponents.draw(batch, epoch, state.batches + 1)
            sums = learn(rows, batch.images, batch.labels, batch.adversarial, *view, drawn, **through)
            for key, value in sums.items():
                state.totals[key] = state.totals.get(key, 0) + value
            for each in state.schedulers:
                each.step()
            state.batches += 1
            after_batch(len(batch.rows))


def _as_it_is(images: Tensor) -> Tensor:
    return images


def learn_from(
    net: Classifier,
    step: Step,
    opponents: Opponents,
    average: MovingAverage | None,
    rows: Tensor,
    images: Tensor,
    labels: Tensor,
    adversarial: Tensor,
    boxes: Tensor,
    shifts: Tensor | None,
    drawn: Tensor | None,
    seen: Draw = _as_it_is,
) -> dict[str, Tensor]:
    """Learn from a batch, whose parts are those of Batch and of Augmentation: sums over it, as Step has them."""
    batch, view = Batch(rows, images, labels, adversarial), Augmentation(boxes, shifts)
    shown = opponents.show(batch, view, seen, drawn)
    sums = step.run(seen(shown.images), labels, shown.adversarial, shown.penalty)
    distributed.average_norms(net)
    if average is not None:
        average.update(net)
    return sums


def _tell(state: _State, means: dict[str, float]) -> None:
    """Print the epoch's means, and where the net has collapsed in it."""
    line = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in means.items() if not np.isnan(value))
    print(f"{state.name}: epoch {state.epoch}/{state.epochs}, {line}", flush=True)
    if collapsed_at(state.history) == state.epoch:
        print(f"{state.name}: {COLLAPSE}", flush=True)
