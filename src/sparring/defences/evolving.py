"""Opponents that follow the net: each training image keeps one perturbation, which every visit moves by one step.

Method: after FGSM-PGI and FGSM-MEP (Jia et al., 2022, arXiv 2207.08859), on perturbations of whole levels,
in the frame of the net's input as there or in that of the image.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import distributed, store
from sparring.data.augmentation import Augmentation
from sparring.data.transforms import Draw
from sparring.device import rng
from sparring.layout import Layout
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.names import EVOLVING, RANDOM
from sparring.params.structures import Evolving
from sparring.training.gallery import Batch
from sparring.training.loop import Opponents, Shown
from sparring.training.steps import Penalty, autocast

Drawn = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(epoch, visits) → the stored version of each image (N,), and which images meet their own perturbation (N,)."""


class EvolvingOpponents(Opponents):
    """One perturbation an image, within eps of it, and the running direction in which it moves.

    Of the net in training, the gradient at the perturbed image moves the perturbation twice: along the gradient, which
    is what the net learns from in this batch, and along the running direction, which is what is kept. The net is
    penalised for how far its logits move between the image as it was perturbed and as it is now.
    """

    def __init__(
        self,
        net: Classifier,
        settings: Evolving,
        label_smoothing: float,
        dtype: torch.dtype,
        drawn: Drawn,
        start: Callable[[int], np.ndarray],
    ) -> None:
        """start: epoch → the perturbations (N, H, W, 3) that begin in it, int8, in levels of 255."""
        self._net, self._settings, self._dtype = net, settings, dtype
        self._label_smoothing = label_smoothing
        self._drawn, self._start = drawn, start
        self._device = next(net.parameters()).device
        self._began = 0
        # Of the shape (N, H, W, 3), as the stores have images. All three stay where they are: see Opponents.show.
        self._perturbation = torch.from_numpy(self._start(0)).to(self._device)
        # Not float16, for which its numbers are too small.
        self._direction = torch.zeros(self._perturbation.shape, dtype=torch.bfloat16, device=self._device)
        self._evolves = torch.zeros(len(self._perturbation), dtype=torch.bool, device=self._device)

    def _begin(self, epoch: int) -> None:
        self._began = epoch
        self._perturbation.copy_(torch.from_numpy(self._start(epoch)))
        self._direction.zero_()

    def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
        reset = self._settings.reset
        if reset and epoch % reset == 0 and epoch != self._began:  # or this is an epoch that is gone on with
            self._begin(epoch)
        version, evolves = self._drawn(epoch, visits)
        self._evolves.copy_(torch.from_numpy(evolves))
        return version

    def show(self, batch: Batch, view: Augmentation, seen: Draw, drawn: Tensor | None) -> Shown:
        settings, images = self._settings, batch.images
        eps, step = settings.whole
        every = batch.rows
        rows = distributed.mine(every)
        evolves, labels = self._evolves[rows], distributed.mine(batch.labels)
        before = torch.cat([_as_images(self._perturbation[rows]), _as_images(self._direction[rows])], 1)
        moving = settings.frame == "moving"
        change, direction = (view.apply(before) if moving else before).split(3, 1)
        change = change * _beside_images(evolves)  # clean and stored images pass the net unchanged both times

        # The gradient is taken behind the clip: torch's passes none at 0 and 1, and black and white would never move.
        at = (images + change / 255).clamp(0, 1).requires_grad_()
        with autocast(images.device, self._dtype):
            logits = self._net(seen(at)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing, reduction="sum")
        slope = torch.autograd.grad(loss, at, retain_graph=settings.consistency > 0)[0]

        moved = (change + step * slope.sign()).clamp(-eps, eps)
        if moving:  # what a shift lets in belongs to no pixel of the image
            moved = moved * view.apply(torch.ones_like(images[:, :1]))
        attacked = torch.where(_beside_images(evolves), (images + moved / 255).clamp(0, 1), images)
        direction = slope / _beside_images(slope.abs().sum((1, 2, 3)).clamp(min=1e-30)) + settings.momentum * direction
        change = (change + step * direction.sign()).clamp(-eps, eps)
        if moving:
            change, direction = view.undo(torch.cat([change, direction], 1), before).split(3, 1)
        self._keep(every, change, direction)
        return Shown(attacked, batch.adversarial | self._evolves[every], self._penalty(logits, evolves))

    def _penalty(self, before: Tensor, evolves: Tensor) -> Penalty | None:
        """How far the logits move.  before: those (n, classes) of the images as they were perturbed."""
        weight = self._settings.consistency
        return (lambda after: weight * ((after - before).square().mean(1) * evolves).mean()) if weight else None

    def _keep(self, rows: Tensor, change: Tensor, direction: Tensor) -> None:
        """Store a batch's new perturbations and directions in every process.

        rows: of the whole batch (N,).  change, direction: those of this process's slice (n, 3, H, W).
        """
        found = change.to(torch.int8), direction.to(torch.bfloat16)
        change, direction = (distributed.all_rows(_as_stored(each), len(rows)) for each in found)
        evolves = _beside_images(self._evolves[rows])
        self._perturbation[rows] = torch.where(evolves, change, self._perturbation[rows])
        self._direction[rows] = torch.where(evolves, direction, self._direction[rows])

    def state_dict(self) -> dict[str, Any]:
        return {"perturbation": self._perturbation, "direction": self._direction, "began": self._began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._perturbation.copy_(state["perturbation"])
        self._direction.copy_(state["direction"])
        self._began = state["began"]


def alone(settings: Evolving, seed: int) -> Drawn:
    """Every image meets its own perturbation, but for a share that comes clean."""

    def drawn(epoch: int, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evolves = rng(seed, EVOLVING, epoch).random(len(visits)) < settings.adv_ratio
        return np.zeros(len(visits), np.int64), evolves

    return drawn


def among(draw: Callable[..., np.ndarray], attacks: list[str]) -> Drawn:
    """An image meets its own perturbation where what it would meet is the version after those of the attacks.

    draw: (epoch=, visits=) → version of each image (N,), as of sampler.draw.
    """

    def drawn(epoch: int, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        version = draw(epoch=epoch, visits=visits)
        evolves = version > len(attacks)
        return np.where(evolves, 0, version), evolves

    return drawn


def starts(params: Params, clean: store.Images, source: str, layout: Layout) -> Callable[[int], np.ndarray]:
    """How perturbations begin, as EvolvingOpponents takes it: at eps with random signs, drawn by seed and epoch, or as
    what a stored attack changed, brought within eps.

    clean: the training images.  source: digest of the net that the attack has to have been made against; InputError
    where it was not.
    """
    settings = params.evolving
    eps, _ = settings.whole
    if settings.start == RANDOM:
        shape = (len(clean), *clean.metadata["shape"])

        def signs(epoch: int) -> np.ndarray:
            drawn = rng(params.seed, EVOLVING, "signs", epoch).integers(0, 2, shape, np.int8)
            return np.asarray(eps * (2 * drawn - 1)).astype(np.int8)

        return signs
    path = layout.adversarial / settings.start / "train.parquet"
    attacked = store.read(path)
    store.check_rows(clean, attacked, path)
    store.check_source(attacked, source, path)
    images = store.read(layout.clean / "train.parquet").image.astype(np.float32)
    change = np.clip(np.rint(attacked.image.astype(np.float32) - images), -eps, eps).astype(np.int8)
    return lambda epoch: change.copy()


def _as_images(stored: Tensor) -> Tensor:
    """(N, H, W, 3) of any type as (N, 3, H, W) in float32."""
    return stored.permute(0, 3, 1, 2).float()


def _as_stored(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).contiguous()


def _beside_images(values: Tensor) -> Tensor:
    """A number an image (N,), shaped so that it meets all pixels of that image (N, 3, H, W)."""
    return values[:, None, None, None]
