"""Adapts classifiers that need normalised images, or have their classes in another order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparring.models.classifier import Classifier


class Adapted(Classifier):
    """Computes net(normalised images) and puts the logits in another order.

    scaling: mean and standard deviation of each channel or of all, in [0, 1]; None where the net takes images as they
    are.  order: the net's index of each class; None where its order is the right one already.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: Classifier, scaling: tuple[Sequence[float], Sequence[float]] | None, order: list[int] | None
    ) -> None:
        super().__init__()
        mean, std = scaling or ([0.0], [1.0])
        self.net, self.order, self.scales = net, order, scaling is not None
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        return self.net.maps((images - self.mean) / self.std if self.scales else images, last)

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        logits = self.net.classify(maps)
        return logits if self.order is None else logits[:, self.order]
