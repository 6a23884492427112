"""The one training loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparring import checkpoints, distributed, progress, store
from sparring.checkpoints import Checkpoint
from sparring.data import transforms
from sparring.device import rng, torch_seed
from sparring.models import classifier
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.training.gallery import Gallery, batch_stops
from sparring.training.steps import Step, scheduler


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
            predicted = classifier.predict(kept[0], validation.image, params.store.batch_size, device).argmax(1)
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


def _line(means: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in means.items() if not np.isnan(value))
