"""Opponents: what the images of a batch are replaced by before the net learns from them."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparring import distributed
from sparring.attacks.pgd import pgd
from sparring.device import rng
from sparring.models.classifier import Classifier
from sparring.params.sections import Online
from sparring.training.steps import autocast


def online_attack(
    net: Classifier, settings: Online, dtype: torch.dtype, seed: int
) -> Callable[[Tensor, Tensor, int, int], Tensor]:
    """Opponents made on the fly, against the net as it is: PGD in L∞ from one uniform random start (Madry et al., 2018,
    arXiv 1706.06083), which with a single step is FGSM with random start (Wong et al., 2020, arXiv 2001.03994).

    Returns a function of (images (N, 3, H, W) in [0, 1], labels (N,), epoch, number of the batch) that gives every
    image attacked, within eps of it; one of several processes passes its slice of the images, and all labels. The net
    is attacked in eval mode: as the function that it is evaluated as, each image for itself, and with its running
    statistics left alone.
    """

    def logits(images: Tensor) -> Tensor:
        with autocast(images.device, dtype):
            return net(images).float()

    def attack(images: Tensor, labels: Tensor, epoch: int, number: int) -> Tensor:
        generator = torch.Generator(images.device)
        generator.manual_seed(int(rng(seed, "online", epoch, number).integers(2**62)))
        starts = torch.randn((len(labels), 1, *images.shape[1:]), generator=generator, device=images.device)
        net.eval()
        attacked = pgd(
            logits,
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
        net.train()
        return attacked

    return attack
