import math

import torch
from torch import Tensor, nn

from sparring.attacks.losses import log_odds, unit


def ddn(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, gamma: float, start: float) -> Tensor:
    """Decoupled direction and norm, a minimal-norm L2 attack (Rony et al., 2019, arXiv 1811.09600): each step turns
    the change along the gradient, then sets its length, shorter by `gamma` after a success and longer after a failure.

    images: (N, 3, H, W) in [0, 1].  start: the first length.  Returns each image's nearest success, or the image itself
    where there was none, or where the model got it wrong to begin with.
    """
    best, nearest = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    with torch.no_grad():
        rows = (model(images).argmax(1) == labels).nonzero()[:, 0]
    inner, own = images[rows], labels[rows]
    change, length = torch.zeros_like(inner), torch.full((len(rows), 1, 1, 1), start, device=images.device)
    for number in range(steps if len(rows) else 0):
        current = (inner + change).requires_grad_()
        logits = model(current)
        gradient = torch.autograd.grad(log_odds(logits, own).sum(), current)[0]
        fools = logits.detach().argmax(1) != own
        distance = change.flatten(1).norm(dim=1)
        nearer = fools & (distance < nearest[rows])
        best[rows[nearer]], nearest[rows[nearer]] = current.detach()[nearer], distance[nearer]
        # As in the article, the step falls from 1 to 0.01 along a cosine.
        step = 0.01 + 0.99 * (1 + math.cos(math.pi * number / steps)) / 2
        change = change + step * unit(gradient)
        length = length * torch.where(fools, 1 - gamma, 1 + gamma).view(-1, 1, 1, 1)
        change = (inner + length * unit(change)).clamp(0, 1) - inner
    return best
