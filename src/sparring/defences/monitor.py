"""Measures whether a net in training withstands attacks that aim at it, on some validation images."""

import numpy as np
import torch

from sparring import store
from sparring.attacks.fgsm import fgsm
from sparring.attacks.pgd import pgd
from sparring.device import rng
from sparring.models import classifier
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.training.loop import Monitor


def attack_monitor(params: Params, validation: store.Images, device: torch.device) -> Monitor | None:
    """Return a function that measures fgsm_accuracy and pgd_accuracy, as params.monitor says, in float32; None where it
    is off or there are no validation images. Every epoch has the same images and the same random starts."""
    settings = params.monitor
    if not settings.every or not len(validation):
        return None
    sample = validation[np.sort(rng(params.seed, "monitor").permutation(len(validation))[: settings.images])]
    images = classifier.to_images(sample.image, device)
    labels = torch.from_numpy(sample.label).to(device)
    generator = torch.Generator().manual_seed(int(rng(params.seed, "monitor", "starts").integers(2**62)))
    starts = torch.randn((len(images), 1, *images.shape[1:]), generator=generator).to(device)

    def measure(net: Classifier, epochs: int) -> dict[str, float]:
        if epochs % settings.every and epochs != params.training.epochs:
            return {}
        net.eval()
        right = {"fgsm_accuracy": 0, "pgd_accuracy": 0}
        for rows in torch.arange(len(images), device=device).split(params.store.batch_size):
            batch, batch_labels = images[rows], labels[rows]
            attacked = {
                "fgsm_accuracy": fgsm(net, batch, batch_labels, eps=settings.eps),
                "pgd_accuracy": pgd(
                    net,
                    batch,
                    batch_labels,
                    eps=settings.eps,
                    step=settings.eps / 4,
                    steps=settings.steps,
                    norm="linf",
                    restarts=1,
                    loss="cross_entropy",
                    starts=starts[rows],
                ),
            }
            with torch.no_grad():
                for name, adversarial in attacked.items():
                    right[name] += int((net(adversarial).argmax(1) == batch_labels).sum())
        return {name: count / len(images) for name, count in right.items()}

    return measure
