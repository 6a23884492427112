"""Prediction through a random transform: averaged over several draws of it."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sparring.data.transforms import RandomTransform
from sparring.models.classifier import Classifier


class Averaged(Classifier):
    """A net whose prediction is the mean of its softmax over `draws` draws of a random transform.

    Its draws are made once, from the seed, and are the same for every image, so it is a function like any other net:
    neither the batch nor the order of calls matters. Its logits are the logarithms of the mean probabilities.
    Its maps are the net's own, of the images themselves.
    """

    def __init__(self, net: Classifier, transform: RandomTransform, draws: int, seed: int) -> None:
        super().__init__()
        self.net, self.transform, self.draws, self.seed = net, transform, draws, seed
        self.fresh = False

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """The images (N, 3, H, W) under each draw."""
        shape, same = tuple(images.shape[1:]), np.zeros(len(images), np.int64)
        for number in range(self.draws):
            if self.fresh:
                what = ("attacker", int(torch.randint(2**62, ())))
                yield self.transform.draw(shape, np.arange(len(images)), self.seed, *what)(images)
            else:
                yield self.transform.draw(shape, same, self.seed, "prediction", number)(images)

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        return self.net.maps(images, last)

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return self.net.classify(maps)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([self.net(view).log_softmax(1) for view in self.views(images)])
        return logits.logsumexp(0) - np.log(self.draws)

    def with_fresh_draws(self) -> "Averaged":
        """The same, for an attacker who does not know the draws: new ones for each image and call, from torch's global
        generator. Its gradient is that of the expectation over transformations (Athalye et al., 2018, arXiv
        1707.07397), estimated from so many draws."""
        other = copy.copy(self)
        other.fresh = True
        return other

    def of_one_draw(self) -> "Averaged":
        """The same with its first draw alone, as an attacker has it who takes no heed of the randomness."""
        other = copy.copy(self)
        other.draws = 1
        return other


def as_attacked(net: Classifier) -> Classifier:
    """What an attacker aims at: the net itself or, of one that predicts at random, the expectation."""
    return net.with_fresh_draws() if isinstance(net, Averaged) else net
