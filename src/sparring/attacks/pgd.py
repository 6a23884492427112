from collections.abc import Callable

import torch
from torch import Tensor

from sparring.attacks.losses import logits_of, loss_gradient, margin, unit


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    norm: str,
    restarts: int,
    loss: str,
    starts: Tensor,
) -> Tensor:
    """Run projected gradient descent from random starts (Madry et al., 2018, arXiv 1706.06083).

    images: (N, 3, H, W) in [0, 1].  eps: radius of the ball; step: length of a step, same unit; norm: linf | l2.
    loss: which loss the steps raise: cross_entropy, or margin, the highest other logit minus the label's (Carlini and
    Wagner, 2017, arXiv 1608.04644).
    starts: (N, restarts, 3, H, W), standard normal. They are mapped to uniform points in the L∞ ball, or on the L2
    sphere, which in so many dimensions is as good as the ball.
    Returns, for each image, the end point with the smallest margin, within eps of the image.
    """
    best, least = images, torch.full((len(images),), torch.inf, device=images.device)
    for number in range(restarts):
        start = starts[:, number]
        change = torch.erf(start / 2**0.5) if norm == "linf" else unit(start)
        adversarial = (images + eps * change).clamp(0, 1)
        for _ in range(steps):
            gradient = loss_gradient(model, adversarial, labels, loss=loss)
            change = adversarial + step * (gradient.sign() if norm == "linf" else unit(gradient)) - images
            change = change.clamp(-eps, eps) if norm == "linf" else _into_ball(change, eps)
            adversarial = (images + change).clamp(0, 1)
        if restarts == 1:
            return adversarial
        lead = margin(logits_of(model, adversarial), labels)
        better = lead < least
        least = torch.where(better, lead, least)
        best = torch.where(better.view(-1, 1, 1, 1), adversarial, best)
    return best


def _into_ball(change: Tensor, eps: float) -> Tensor:
    length = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return change * (eps / length).clamp(max=1)  # also where it is 0, as eps / 0 is infinite
