"""Creates the kind of opponents that a structure names, whose images its net meets in place of the clean ones.

One more kind is a class here, a line of `create`, and a section of params.yaml.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sparring import distributed
from sparring.attacks.losses import loss_gradient
from sparring.attacks.pgd import pgd
from sparring.data.augmentation import Augmentation
from sparring.data.transforms import Draw
from sparring.defences import evolving, sampler
from sparring.defences.evolving import EvolvingOpponents
from sparring.device import rng
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.names import EVOLVING
from sparring.params.structures import Online, Sampler, Structure
from sparring.training.gallery import Batch
from sparring.training.loop import Opponents, TrainingInput
from sparring.training.steps import autocast


class StoredOpponents(Opponents):
    """These opponents are the stored attacks, drawn anew for each epoch (the random sampler of arXiv 2204.11596).

    draw: (epoch=, visits=) → version of each image (N,), as of sampler.draw.
    """

    def __init__(self, draw: Callable[..., np.ndarray]) -> None:
        self._draw = draw

    def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
        return self._draw(epoch=epoch, visits=visits)


class OnlineOpponents(Opponents):
    """These opponents attack the net in training by PGD in L∞ from one uniform random start (Madry et al., 2018, arXiv
    1706.06083), which with a single step is FGSM with random start (Wong et al., 2020, arXiv 2001.03994).

    Every image is attacked, and stays in [0, 1] and, but for N-FGSM, within eps of itself. The net is attacked in eval
    mode: so it is the function that is evaluated later, images do not influence each other, and its running statistics
    do not change. The attack goes through the same draw of the structure's transform as the learning after it.
    `settings.noise` is the size of the random start, in eps. Above 1 the attack is N-FGSM, whose single step is not
    clipped to eps (de Jorge et al., 2022, arXiv 2202.01181).
    """

    def __init__(self, net: Classifier, settings: Online, dtype: torch.dtype, seed: int) -> None:
        self._net, self._settings, self._dtype, self._seed = net, settings, dtype, seed

    def draw(self, batch: Batch, epoch: int, number: int) -> Tensor:
        images = batch.images
        generator = torch.Generator(images.device)
        generator.manual_seed(int(rng(self._seed, "online", epoch, number).integers(2**62)))
        return torch.randn((len(batch.labels), 1, *images.shape[1:]), generator=generator, device=images.device)

    def show(self, batch: Batch, view: Augmentation, transform_draw: Draw, noise: Tensor | None) -> TrainingInput:
        settings, images = self._settings, batch.images
        assert noise is not None
        starts, labels = distributed.mine(noise), distributed.mine(batch.labels)

        def logits(attacked: Tensor) -> Tensor:
            return self._logits(transform_draw(attacked))

        self._net.eval()
        if settings.noise == 1:
            attacked = pgd(
                logits,
                images,
                labels,
                eps=settings.eps,
                step=settings.step,
                steps=settings.steps,
                norm="linf",
                restarts=1,
                loss="cross_entropy",
                starts=starts,
            )
        else:
            start_noise = settings.noise * settings.eps * torch.erf(starts[:, 0] / 2**0.5)
            attacked = (images + start_noise).clamp(0, 1)
            change = attacked + settings.step * loss_gradient(logits, attacked, labels).sign() - images
            if settings.noise < 1:
                change = change.clamp(-settings.eps, settings.eps)
            attacked = (images + change).clamp(0, 1)
        self._net.train()
        return TrainingInput(attacked, batch.adversarial)

    def _logits(self, images: Tensor) -> Tensor:
        with autocast(images.device, self._dtype):
            return self._net(images).float()


def create(
    params: Params,
    structure: Structure,
    attacks: list[str],
    net: Classifier,
    dtype: torch.dtype,
    start: Callable[[int], np.ndarray] | None = None,
) -> Opponents:
    """Create the opponents that a structure names, for one training with `params.seed`.

    attacks: those of the gallery, in its order.  net: the one in training, which opponents may attack.
    start: as of EvolvingOpponents, for a structure that has these.
    """
    kind, seed = structure.opponents, params.seed
    if kind == "none":
        return Opponents()
    if structure.online:
        return OnlineOpponents(net, getattr(params, kind), dtype, seed)
    evolving_opponents = partial(EvolvingOpponents, net, params.evolving, params.training.label_smoothing, dtype)
    if kind == EVOLVING:
        assert start is not None
        return evolving_opponents(evolving.evolving_only(params.evolving, seed), start)
    draw = {"sampler": sampler.draw, "fixed": sampler.draw_fixed}[kind]
    settings: Sampler = getattr(params, kind)
    draw_versions = partial(draw, seed=seed, batch_size=params.training.batch_size)
    if not structure.evolves:
        return StoredOpponents(partial(draw_versions, settings, attacks))
    assert start is not None
    weights = settings.weights | {EVOLVING: params.evolving.weight}
    settings = settings.model_copy(update={"weights": weights})
    return evolving_opponents(
        evolving.stored_or_evolving(partial(draw_versions, settings, [*attacks, EVOLVING]), attacks), start
    )
