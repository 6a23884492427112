"""The kinds of opponents that a structure names: what its net meets in place of the clean images.

One more kind is a class here, a line of `create`, and a section of params.yaml.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sparring import distributed
from sparring.attacks.pgd import pgd
from sparring.data.transforms import Draw
from sparring.defences import sampler
from sparring.device import rng
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.sections import Online, Structure
from sparring.training.loop import Opponents
from sparring.training.steps import autocast


class StoredOpponents(Opponents):
    """The stored attacks, drawn anew for each epoch: arXiv 2204.11596, the random sampler.

    draw: (epoch=, visits=) → version of each image (N,), as of sampler.draw.
    """

    def __init__(self, draw: Callable[..., np.ndarray]) -> None:
        self._draw = draw

    def versions(self, epoch: int, visits: np.ndarray) -> np.ndarray:
        return self._draw(epoch=epoch, visits=visits)


class OnlineOpponents(Opponents):
    """Attacks made on the fly, against the net as it is: PGD in L∞ from one uniform random start (Madry et al., 2018,
    arXiv 1706.06083), which with a single step is FGSM with random start (Wong et al., 2020, arXiv 2001.03994).

    Every image is attacked, and stays within eps of itself and in [0, 1]. The net is attacked in eval mode: as the
    function that it is evaluated as, each image for itself, and with its running statistics left alone; but through the
    draw of the structure's transform through which it will learn from them.
    """

    def __init__(self, net: Classifier, settings: Online, dtype: torch.dtype, seed: int) -> None:
        self._net, self._settings, self._dtype, self._seed = net, settings, dtype, seed

    def show(
        self, rows: Tensor, images: Tensor, labels: Tensor, boxes: Tensor, epoch: int, number: int, seen: Draw
    ) -> Tensor:
        settings = self._settings
        generator = torch.Generator(images.device)
        generator.manual_seed(int(rng(self._seed, "online", epoch, number).integers(2**62)))
        starts = torch.randn((len(labels), 1, *images.shape[1:]), generator=generator, device=images.device)
        self._net.eval()
        attacked = pgd(
            lambda attacked: self._logits(seen(attacked)),
            images,
            distributed.mine(labels),
            eps=settings.eps,
            step=settings.step,
            steps=settings.steps,
            norm="linf",
            restarts=1,
            loss="cross_entropy",
            starts=distributed.mine(starts),
        )
        self._net.train()
        return attacked

    def _logits(self, images: Tensor) -> Tensor:
        with autocast(images.device, self._dtype):
            return self._net(images).float()


def create(
    params: Params, structure: Structure, attacks: list[str], net: Classifier, dtype: torch.dtype, seed: int
) -> Opponents:
    """The opponents that a structure names, for one training.

    attacks: those of the gallery, in its order.  net: the one in training, which opponents may attack.
    """
    word = structure.opponents
    if word == "none":
        return Opponents()
    settings = getattr(params, word)
    if structure.online:
        return OnlineOpponents(net, settings, dtype, seed)
    draw = {"sampler": sampler.draw, "fixed": sampler.draw_fixed}[word]
    return StoredOpponents(partial(draw, settings, attacks, seed=seed, batch_size=params.training.batch_size))
