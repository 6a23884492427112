"""The one training loop, and the pretrained net; structures.py adds the steps and draws of the defences."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import files, networks, progress, store, transforms
from sparring.device import channels_last, choose, precision, rng, torch_seed
from sparring.networks import Classifier
from sparring.params import InputError, Params, Training


class Step(NamedTuple):
    """How a structure learns from one batch.

    run: takes images (N, 3, H, W) in [0, 1], labels (N,) and which of them are adversarial (N,) bool; updates the nets
    and returns sums over the batch, on the device: fetching them every step would stall it.
    optimizers: those that `run` steps, for the loop to lower their learning rates.
    """

    run: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
    optimizers: list[torch.optim.Optimizer]


class Gallery:
    """Every version of every training image, on the device as stored: version 0 is clean, the others one attack each.

    image: (V, N, H, W, C) uint8, or float16 where an attack is stored so.  label: (N,).
    adversarial: (V, N), False also where an attack changed nothing.
    """

    def __init__(self, clean: store.Images, attacked: list[store.Images], device: torch.device) -> None:
        versions = [clean, *attacked]
        dtype = np.result_type(*(images.image for images in versions))
        stacked = np.empty((len(versions), *clean.image.shape), dtype)
        for number, images in enumerate(versions):
            stacked[number] = images.image
        changed = np.stack([np.zeros(len(clean), bool), *(images.columns["linf"] > 0 for images in attacked)])
        self.image = torch.from_numpy(stacked).to(device)
        self.label = torch.from_numpy(clean.label).to(device)
        self.adversarial = torch.from_numpy(changed).to(device)

    def batch(self, version: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = networks.to_images(self.image[version, rows], self.image.device)
        return images, self.label[rows], self.adversarial[version, rows]


def plain_step(net: Classifier, settings: Training, dtype: torch.dtype) -> Step:
    """Cross-entropy alone: the pretrained net and the paper's "Adv" row."""
    optimizer = sgd(net, settings.learning_rate, settings)

    def run(images: Tensor, labels: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        with autocast(images.device, dtype):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), labels)
        update(optimizer, loss)
        return {"loss": loss.detach() * len(labels), "accuracy": (logits.argmax(1) == labels).sum()}

    return Step(run, [optimizer])


def sgd(module: nn.Module, learning_rate: float, settings: Training) -> torch.optim.SGD:
    return torch.optim.SGD(
        module.parameters(), learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def scheduler(optimizer: torch.optim.Optimizer, settings: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Moves the learning rate over `steps` steps: nowhere, or along half a cosine to 0."""
    if settings.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


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
) -> pd.DataFrame:
    """Train for params.training.epochs epochs; returns a row of means an epoch.

    draw: (epoch, order of visits) → version of each image (N,).  validation: clean images to watch, not to choose by.
    Raises InputError where a loss is no longer a number.
    """
    settings, device = params.training, gallery.image.device
    count = len(gallery.label)
    steps = settings.epochs * len(batches(torch.arange(count), settings.batch_size))
    schedulers = [scheduler(optimizer, settings, steps) for optimizer in step.optimizers]
    history = []
    with progress.bar(name, settings.epochs * count) as advance:
        for epoch in range(settings.epochs):
            visits = rng(params.seed, "order", epoch).permutation(count)
            version = torch.from_numpy(draw(epoch, visits)).to(device)
            area = (settings.crop_area[0], settings.crop_area[1])
            crops = transforms.draw_crops(rng(params.seed, "crop", epoch), count, area, settings.horizontal_flip)
            crops = crops.to(device)
            totals: dict[str, Tensor] = {}
            net.train()
            with torch_seed(params.seed, "train", name, epoch):
                for rows in batches(torch.from_numpy(visits).to(device), settings.batch_size):
                    images, labels, adversarial = gallery.batch(version[rows], rows)
                    for key, value in step.run(transforms.crop(images, crops[rows]), labels, adversarial).items():
                        totals[key] = totals.get(key, 0) + value
                    for each in schedulers:
                        each.step()
                    advance(len(rows))
            means = {key: float(value) / count for key, value in totals.items()}
            broken = [key for key, value in means.items() if not np.isfinite(value)]
            if broken:
                raise InputError(
                    f"{name}: {broken[0]} is {means[broken[0]]} in epoch {epoch}; "
                    f"lower training.learning_rate ({settings.learning_rate})"
                )
            right = (
                networks.predict(net, validation.image, params.store.batch_size, device).argmax(1) == validation.label
            )
            means["validation_accuracy"] = float(right.mean()) if len(right) else float("nan")
            history.append({"epoch": epoch, **means})
            print(f"{name}: epoch {epoch + 1}/{settings.epochs}, " + _line(means), flush=True)
    return pd.DataFrame(history)


def batches(visits: Tensor, size: int) -> list[Tensor]:
    """The visits (N,) in batches of `size`, the last one smaller; but one image left over joins the batch before it,
    as BatchNorm has nothing to average where a map is 1×1."""
    parts = list(visits.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _line(means: dict[str, float]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in means.items())


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
    with progress.timed("pretrain", device, dtype) as done:
        clean, validation = (store.read(files.CLEAN / f"{split}.parquet") for split in ("train", "validation"))
        net = create(params, "pretrained", len(clean.metadata["classes"]))
        channels_last(net, device)
        history = fit(
            params,
            "pretrained",
            net,
            plain_step(net, params.training, dtype),
            Gallery(clean, [], device),
            lambda epoch, visits: np.zeros(len(visits), np.int64),
            validation,
        )
        save(params, "pretrained", files.PRETRAINED, net, dtype, clean)
        save_history("pretrained", history)
        done(len(clean) * params.training.epochs, f"{params.training.epochs} epochs of {len(clean):,} images")
