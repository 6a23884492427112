"""Averages a net's predictions over several draws of a random transform."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparring.data.transforms import RandomTransform
from sparring.models.classifier import Classifier


class Averaged(Classifier):
    """Predicts the mean of a net's softmax over `draws` draws of a random transform.

    The draws are made from the seed and are the same for every image. So it is a function like any other net: neither
    the batch nor the order of calls matters. Its logits are the logarithms of the mean probabilities. Its maps are the
    net's maps of the untransformed images.
    """

    def __init__(self, net: Classifier, transform: RandomTransform, draws: int, seed: int) -> None:
        super().__init__()
        self.net, self.transform, self.draws, self.seed = net, transform, draws, seed
        self.fresh = False

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the images (N, 3, H, W) under each draw."""
        shape, zeros = tuple(images.shape[1:]), np.zeros(len(images), np.int64)
        for number in range(self.draws):
            if self.fresh:
                words = ("attacker", int(torch.randint(2**62, ())))
                yield self.transform.draw(shape, np.arange(len(images)), self.seed, *words)(images)
            else:
                yield self.transform.draw(shape, zeros, self.seed, "prediction", number)(images)

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        return self.net.maps(images, last)

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return self.net.classify(maps)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([self.net(view).log_softmax(1) for view in self.views(images)])
        return logits.logsumexp(0) - np.log(self.draws)

    def with_fresh_draws(self) -> "Averaged":
        """Return a copy for an attacker who does not know the draws: it makes new ones for each image and call, from
        torch's global generator. Its gradient estimates that of the expectation over transformations (Athalye et al.,
        2018, arXiv 1707.07397) from `draws` draws."""
        other = copy.copy(self)
        other.fresh = True
        return other

    def of_one_draw(self) -> "Averaged":
        """Return a copy with the first draw alone, for an attacker who ignores the randomness."""
        other = copy.copy(self)
        other.draws = 1
        return other


def as_attacked(net: Classifier) -> Classifier:
    """Return what an attacker aims at: the net itself, or for an Averaged one its copy `with_fresh_draws`."""
    return net.with_fresh_draws() if isinstance(net, Averaged) else net
