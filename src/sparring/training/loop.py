"""Pretraining and every defence use this training loop."""

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
"""(net, epochs done) → measured shares of images by name; none in an epoch that is not monitored."""
CHOSEN_BY = {"best": "validation_accuracy", "best_robust": "pgd_accuracy"}


class TrainingInput(NamedTuple):
    """Holds what the net learns from in place of a batch.

    images: (n, 3, H, W) in [0, 1].  adversarial: which images of the whole batch are adversarial (N,).
    penalty: function of the net's logits for these images, which is added to the loss.
    """

    images: Tensor
    adversarial: Tensor
    penalty: Penalty | None = None


class Opponents:
    """Opponents decide which images the net in training meets. This base class leaves every image clean. Each kind of
    opponents overrides some of the methods.

    The loop calls `versions` once an epoch, `draw` and `show` once a batch, and keeps `state_dict` in the checkpoint.
    """

    def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
        """Return the stored version of each image (N,) in this epoch: 0 is clean, i the i-th attack of the gallery.
        visits: the images in the order in which the epoch visits them (N,)."""
        return np.zeros(len(visits), np.int64)

    def draw(self, batch: Batch, epoch: int, number: int) -> Tensor | None:
        """Draw random numbers for `show`, which draws none itself.  number: the batch's place in the epoch, from 1."""
        return None

    def show(self, batch: Batch, view: Augmentation, transform_draw: Draw, noise: Tensor | None) -> TrainingInput:
        """Return what the net learns from in place of a batch. A CUDA graph may contain this, so whatever changes from
        batch to batch is in its arguments, or in tensors that keep their memory.

        view: how each of the batch's images was augmented.  transform_draw: the batch's draw of the structure's
        transform, which will be applied to the returned images.  noise: from `draw`.
        """
        return TrainingInput(batch.images, batch.adversarial)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to end with the same bytes: numbers, strings, lists, dicts, tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class _State:
    """Holds the state of a training that a checkpoint keeps: what changes from batch to batch, and its progress."""

    def __init__(
        self, params: Params, name: str, net: Classifier, step: Step, opponents: Opponents, count: int
    ) -> None:
        settings = params.training
        self.name, self.epochs = name, settings.epochs
        steps = settings.epochs * len(batch_stops(count, settings.batch_size))
        self.schedulers = [scheduler(optimizer, settings, steps) for optimizer in step.optimizers]
        self.average = MovingAverage(net, settings.ema) if settings.ema else None
        self.trained = [net, *step.helpers]
        self.evaluated: Classifier = self.average.net if self.average else net  # type: ignore[assignment]
        self.candidates = [self.evaluated, *step.helpers]
        self.stateful: list[Any] = [*self.trained, *step.optimizers, *self.schedulers, opponents]
        self.stateful += [self.average] if self.average else []
        self.best: list[dict[str, Tensor]] = []
        self.history: list[dict[str, float]] = []
        self.totals: dict[str, Tensor] = {}  # sums over the epoch so far
        self.epoch = self.batches = 0  # the present epoch, and its finished batches
        self.generator_states: list[Tensor] = []  # of torch, where an epoch is resumed
        self._agree = distributed.Agreement()

    def load(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Resume from the checkpoint, if there is one."""
        if (state := checkpoint.load()) is None:
            return
        for item, saved in zip(self.stateful, state["changing"], strict=True):
            item.load_state_dict(saved)
        self.history, self.best = state["history"], state["best"]
        self.epoch, self.batches = state["epoch"], state["batches"]
        self.generator_states = [item[distributed.rank()] for item in state["random"]]
        self.totals = {key: item[distributed.rank()].to(device) for key, item in state["totals"].items()}
        print(f"{self.name}: going on {self._progress_text()}", flush=True)

    def save(self, checkpoint: Checkpoint, stopped: Callable[[], bool], device: torch.device) -> None:
        """Save at intervals, at the end, and where the run was told to stop, which then raises SystemExit."""
        last = self.epoch == self.epochs
        ending = stopped() or distributed.orphaned()
        stop, due = self._agree(ending, distributed.first() and checkpoint.due(), now=last)
        if last or stop or due:
            state = {
                "changing": [item.state_dict() for item in self.stateful],
                "best": self.best,
                "history": self.history,
                "epoch": self.epoch,
                "batches": self.batches,
                "totals": {key: distributed.gather(value) for key, value in self.totals.items()},
                "random": [distributed.gather(item) for item in checkpoints.random_state(device)],
            }
            if distributed.first():
                checkpoint.save(state)
        if stop:
            distributed.wait()  # until the first process has saved it
            raise SystemExit(f"{self.name}: stopped; the same command goes on {self._progress_text()}")

    def end_epoch(self, means: dict[str, float], keep: str) -> None:
        """Append the epoch's means to the history, and copy the nets if this epoch is the best so far.

        keep: `training.keep`, which names the accuracy that decides. Where it is not measured, no copy is made.
        """
        by = CHOSEN_BY.get(keep)
        if by in means and all(means[by] > row.get(by, -1) for row in self.history):
            self.best = [
                {key: value.clone() for key, value in module.state_dict().items()} for module in self.candidates
            ]
        self.history.append({"epoch": self.epoch, **means})
        self.totals, self.batches = {}, 0
        self.epoch += 1

    def restore_best(self) -> None:
        """Load the best epoch's state into the nets. If none was copied, load the moving average, if one is kept."""
        states = self.best or [module.state_dict() for module in self.candidates]
        for module, state in zip(self.trained, states, strict=True):
            module.load_state_dict(state)

    def _progress_text(self) -> str:
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
    """Train for params.training.epochs epochs. Return a row of means for each epoch. In the end the nets have the state
    that params.training.keep and ema select.

    validation: clean images on which accuracy is measured, by which `keep: best` selects the epoch.
    monitor: measures robustness, by which `keep: best_robust` selects it.
    transform: is applied to every image before the net, drawn anew for each image and epoch; None for none.
    checkpoint: the state is saved there at intervals, and loaded from there at the start: nets, optimizers, schedules,
    opponents, sums of the epoch, history, and torch's generators, from which dropout draws. All else is drawn as a
    function of seed and epoch. So a run that was killed ends with the same bits as an undisturbed one.
    Each of several processes calls this, all end with the same nets, and the first one saves.
    Raises InputError where a loss is not finite or there is nothing to select by; SystemExit on SIGTERM and Ctrl-C,
    once the state is saved.
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
            _print_epoch(state, means)
            advance(0, f"PGD {pgd:.3f}" if (pgd := means.get("pgd_accuracy")) is not None else "")
            state.save(checkpoint, stopped, device)
    state.restore_best()
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
    """Return the accuracy on the validation images, NaN without any, and what the monitor measures."""
    predicted = classifier.predict(state.evaluated, validation.image, params.store.batch_size, device).argmax(1)
    right = predicted == validation.label
    accuracies = {"validation_accuracy": float(right.mean()) if len(right) else math.nan}
    return accuracies | (monitor(state.evaluated, state.epoch + 1) if monitor else {})


def _check_finite(name: str, epoch: int, means: dict[str, float], settings: Training, checkpoint: Checkpoint) -> None:
    broken = [key for key, value in means.items() if not np.isfinite(value)]
    if broken:
        if distributed.first():
            checkpoint.delete()  # a resumed run would only end here again
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
    """Train on the rest of an epoch, and add up in state.totals the sums that the step returns.

    learn: as `learn_from`.  after_batch: is called with the number of images of each finished batch.
    """
    settings, device, epoch = params.training, gallery.device, state.epoch
    windows = gallery.order(params.seed, epoch)
    version = opponents.versions(epoch, np.concatenate(windows))
    views = augmentation.draw(settings, len(gallery.label), params.seed, epoch, device)
    net.train()
    rank = [distributed.rank()] if distributed.rank() else []
    with torch_seed(params.seed, "train", state.name, epoch, *rank):
        if state.batches:
            checkpoints.set_random_state(state.generator_states, device)
        for batch in gallery.batches(windows, version, settings.batch_size, state.batches):
            own = distributed.mine(batch.rows)
            view = views.of(own)
            batch = batch._replace(images=view.apply(batch.images))
            draws: dict[str, Draw] = {}
            if transform is not None and transform.settings.training:
                shape = tuple(batch.images.shape[1:])
                draws["transform_draw"] = transform.draw(shape, own.cpu().numpy(), params.seed, "transform", epoch)
            rows = batch.rows.to(device)  # where images are too many for a GPU, they come with rows on the CPU
            noise = opponents.draw(batch, epoch, state.batches + 1)
            sums = learn(rows, batch.images, batch.labels, batch.adversarial, *view, noise, **draws)
            for key, value in sums.items():
                state.totals[key] = state.totals.get(key, 0) + value
            for schedule in state.schedulers:
                schedule.step()
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
    noise: Tensor | None,
    transform_draw: Draw = _as_it_is,
) -> dict[str, Tensor]:
    """Learn from a batch, whose parts are those of Batch and of Augmentation. Return sums over it, as Step does."""
    batch, view = Batch(rows, images, labels, adversarial), Augmentation(boxes, shifts)
    training_input = opponents.show(batch, view, transform_draw, noise)
    sums = step.run(transform_draw(training_input.images), labels, training_input.adversarial, training_input.penalty)
    distributed.average_norms(net)
    if average is not None:
        average.update(net)
    return sums


def _print_epoch(state: _State, means: dict[str, float]) -> None:
    """Print the epoch's means, and where the net has collapsed in it."""
    line = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in means.items() if not np.isnan(value))
    print(f"{state.name}: epoch {state.epoch}/{state.epochs}, {line}", flush=True)
    if collapsed_at(state.history) == state.epoch:
        print(f"{state.name}: {COLLAPSE}", flush=True)
