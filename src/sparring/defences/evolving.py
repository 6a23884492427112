"""Opponents evolve with the net: each training image keeps one perturbation, which every visit moves by one step.

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
from sparring.training.loop import Opponents, TrainingInput
from sparring.training.steps import Penalty, autocast

DrawVersions = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(epoch, visits) → the stored version of each image (N,), and which images get their own perturbation (N,)."""


class EvolvingOpponents(Opponents):
    """Keeps for each image one perturbation within eps, and the running direction in which it moves.

    The gradient of the net in training, at the perturbed image, moves the perturbation in two ways. A step along the
    gradient gives the image that the net learns from in this batch. A step along the running direction gives the
    perturbation that is kept. The net is penalised for the change of its logits between the image with the old
    perturbation and with the new one.
    """

    def __init__(
        self,
        net: Classifier,
        settings: Evolving,
        label_smoothing: float,
        dtype: torch.dtype,
        draw_versions: DrawVersions,
        start: Callable[[int], np.ndarray],
    ) -> None:
        """start: epoch → the perturbations (N, H, W, 3) that begin in it, int8, in levels of 255."""
        self._net, self._settings, self._dtype = net, settings, dtype
        self._label_smoothing = label_smoothing
        self._draw_versions, self._start = draw_versions, start
        self._device = next(net.parameters()).device
        self._began_in = 0
        # The shape is (N, H, W, 3), as in the stores. All three tensors keep their memory: see Opponents.show.
        self._perturbation = torch.from_numpy(self._start(0)).to(self._device)
        # Not float16, for which its numbers are too small.
        self._direction = torch.zeros(self._perturbation.shape, dtype=torch.bfloat16, device=self._device)
        self._evolves = torch.zeros(len(self._perturbation), dtype=torch.bool, device=self._device)

    def _restart(self, epoch: int) -> None:
        self._began_in = epoch
        self._perturbation.copy_(torch.from_numpy(self._start(epoch)))
        self._direction.zero_()

    def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
        reset = self._settings.reset
        if reset and epoch % reset == 0 and epoch != self._began_in:  # where equal, the epoch is resumed
            self._restart(epoch)
        version, evolves = self._draw_versions(epoch, visits)
        self._evolves.copy_(torch.from_numpy(evolves))
        return version

    def show(self, batch: Batch, view: Augmentation, transform_draw: Draw, noise: Tensor | None) -> TrainingInput:
        settings, images = self._settings, batch.images
        eps, step = settings.whole
        batch_rows = batch.rows
        rows = distributed.mine(batch_rows)
        evolves, labels = self._evolves[rows], distributed.mine(batch.labels)
        before = torch.cat([_as_images(self._perturbation[rows]), _as_images(self._direction[rows])], 1)
        moving = settings.frame == "moving"
        change, direction = (view.apply(before) if moving else before).split(3, 1)
        change = change * _beside_images(evolves)  # clean and stored images pass the net unchanged both times

        # The gradient is taken after the clip: torch passes none through it at 0 and 1, so these would never move.
        perturbed = (images + change / 255).clamp(0, 1).requires_grad_()
        with autocast(images.device, self._dtype):
            logits = self._net(transform_draw(perturbed)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing, reduction="sum")
        slope = torch.autograd.grad(loss, perturbed, retain_graph=settings.consistency > 0)[0]

        moved = (change + step * slope.sign()).clamp(-eps, eps)
        if moving:  # pixels that a shift brings in belong to no pixel of the image
            moved = moved * view.apply(torch.ones_like(images[:, :1]))
        attacked = torch.where(_beside_images(evolves), (images + moved / 255).clamp(0, 1), images)
        direction = slope / _beside_images(slope.abs().sum((1, 2, 3)).clamp(min=1e-30)) + settings.momentum * direction
        change = (change + step * direction.sign()).clamp(-eps, eps)
        if moving:
            change, direction = view.undo(torch.cat([change, direction], 1), before).split(3, 1)
        self._keep(batch_rows, change, direction)
        return TrainingInput(attacked, batch.adversarial | self._evolves[batch_rows], self._penalty(logits, evolves))

    def _penalty(self, before: Tensor, evolves: Tensor) -> Penalty | None:
        """Return the penalty on the logits' change.  before: logits (n, classes) with the old perturbations."""
        weight = self._settings.consistency
        return (lambda after: weight * ((after - before).square().mean(1) * evolves).mean()) if weight else None

    def _keep(self, rows: Tensor, change: Tensor, direction: Tensor) -> None:
        """Store a batch's new perturbations and directions in every process.

        rows: of the whole batch (N,).  change, direction: those of this process's slice (n, 3, H, W).
        """
        stored = change.to(torch.int8), direction.to(torch.bfloat16)
        change, direction = (distributed.all_rows(_as_stored(images), len(rows)) for images in stored)
        evolves = _beside_images(self._evolves[rows])
        self._perturbation[rows] = torch.where(evolves, change, self._perturbation[rows])
        self._direction[rows] = torch.where(evolves, direction, self._direction[rows])

    def state_dict(self) -> dict[str, Any]:
        return {"perturbation": self._perturbation, "direction": self._direction, "began": self._began_in}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._perturbation.copy_(state["perturbation"])
        self._direction.copy_(state["direction"])
        self._began_in = state["began"]


def evolving_only(settings: Evolving, seed: int) -> DrawVersions:
    """Return a draw in which every image gets its own perturbation, but for a share that stays clean."""

    def draw_versions(epoch: int, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        evolves = rng(seed, EVOLVING, epoch).random(len(visits)) < settings.adv_ratio
        return np.zeros(len(visits), np.int64), evolves

    return draw_versions


def stored_or_evolving(draw: Callable[..., np.ndarray], attacks: list[str]) -> DrawVersions:
    """Return a draw in which an image gets its own perturbation where `draw` gives the version after the attacks'.

    draw: (epoch=, visits=) → version of each image (N,), as of sampler.draw.
    """

    def draw_versions(epoch: int, visits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        version = draw(epoch=epoch, visits=visits)
        evolves = version > len(attacks)
        return np.where(evolves, 0, version), evolves

    return draw_versions


def starts(params: Params, clean: store.Images, source: str, layout: Layout) -> Callable[[int], np.ndarray]:
    """Return the function `start` of EvolvingOpponents: perturbations begin at eps with random signs, drawn by seed and
    epoch, or as a stored attack's change, clipped to eps.

    clean: the training images.  source: digest of the net that the attack was made against. Raises InputError where it
    was made against another.
    """
    settings = params.evolving
    eps, _ = settings.whole
    if settings.start == RANDOM:
        shape = (len(clean), *clean.metadata["shape"])

        def signs(epoch: int) -> np.ndarray:
            bits = rng(params.seed, EVOLVING, "signs", epoch).integers(0, 2, shape, np.int8)
            return np.asarray(eps * (2 * bits - 1)).astype(np.int8)

        return signs
    path = layout.adversarial / settings.start / "train.parquet"
    attacked = store.read(path)
    store.check_rows(clean, attacked, path)
    store.check_source(attacked, source, path)
    images = store.read(layout.clean / "train.parquet").image.astype(np.float32)
    change = np.clip(np.rint(attacked.image.astype(np.float32) - images), -eps, eps).astype(np.int8)
    return lambda epoch: change.copy()


def _as_images(stored: Tensor) -> Tensor:
    """Convert (N, H, W, 3) of any type to (N, 3, H, W) in float32."""
    return stored.permute(0, 3, 1, 2).float()


def _as_stored(images: Tensor) -> Tensor:
    """Convert (N, 3, H, W) to (N, H, W, 3), of the same type."""
    return images.permute(0, 2, 3, 1).contiguous()


def _beside_images(values: Tensor) -> Tensor:
    """Reshape one value per image (N,) so that it broadcasts over images (N, 3, H, W)."""
    return values[:, None, None, None]
