from collections.abc import Callable

import torch
from torch import Tensor

from sparring.attacks.losses import loss_gradient, margin


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
    starts: Tensor,
) -> Tensor:
    """Projected gradient descent from random starts (Madry et al., 2018, arXiv 1706.06083).

    images: (N, 3, H, W) in [0, 1].  eps: radius of the ball; step: length of a step, same unit; norm: linf | l2.
    starts: (N, restarts, 3, H, W), standard normal: made uniform in the L∞ ball, or on the L2 sphere, which in so many
    dimensions is as good as the ball.  Returns the end with the smallest margin of each image, within eps of it.
    """
    best, least = images, torch.full((len(images),), torch.inf, device=images.device)
    for number in range(restarts):
        start = starts[:, number]
        change = torch.erf(start / 2**0.5) if norm == "linf" else start / _length(start)
        adversarial = (images + eps * change).clamp(0, 1)
        for _ in range(steps):
            gradient = loss_gradient(model, adversarial, labels)
            unit = gradient.sign() if norm == "linf" else gradient / _length(gradient)
            change = adversarial + step * unit - images
            change = change.clamp(-eps, eps) if norm == "linf" else change * (eps / _length(change)).clamp(max=1)
            adversarial = (images + change).clamp(0, 1)
        if restarts == 1:
            return adversarial
        with torch.no_grad():
            lead = margin(model(adversarial), labels)
        better = lead < least
        least = torch.where(better, lead, least)
        best = torch.where(better.view(-1, 1, 1, 1), adversarial, best)
    return best


def _length(images: Tensor) -> Tensor:
    """Each image's L2 length (N, 1, 1, 1), never 0."""
    return images.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
