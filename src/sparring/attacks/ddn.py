import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.attacks.graphs import in_a_graph, staying
from sparring.attacks.losses import log_odds, logits_of, unit


def ddn(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, gamma: float, start: float) -> Tensor:
    """Decoupled direction and norm, a minimal-norm L2 attack (Rony et al., 2019, arXiv 1811.09600): each step turns
    the change along the gradient, then sets its length, shorter by `gamma` after a success and longer after a failure.

    images: (N, 3, H, W) in [0, 1].  start: the first length.  Returns each image's nearest success, or the image itself
    where there was none, or where the model got it wrong to begin with.
    """
    going = logits_of(model, images).argmax(1) == labels
    stay = staying(going, 0)
    rows = torch.arange(len(images), device=images.device) if stay is None else stay
    inner, own, going = images[rows], labels[rows], going[rows]
    best, nearest = inner, torch.full((len(rows),), torch.inf, device=images.device)
    change, length = torch.zeros_like(inner), torch.full((len(rows), 1, 1, 1), start, device=images.device)
    for number in range(steps if len(rows) else 0):
        current = inner + change
        gradient, logits = _gradient(model, current, own)
        fools = logits.argmax(1) != own
        distance = change.flatten(1).norm(dim=1)
        nearer = going & fools & (distance < nearest)
        best, nearest = torch.where(nearer.view(-1, 1, 1, 1), current, best), torch.where(nearer, distance, nearest)
        # As in the article, the step falls from 1 to 0.01 along a cosine.
        step = 0.01 + 0.99 * (1 + math.cos(math.pi * number / steps)) / 2
        change = change + step * unit(gradient)
        length = length * torch.where(fools, 1 - gamma, 1 + gamma).view(-1, 1, 1, 1)
        change = (inner + length * unit(change)).clamp(0, 1) - inner
    found = images.clone()
    found[rows] = best
    return found


@in_a_graph
def _gradient(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The gradient (N, 3, H, W) of the log odds against the labels, and the logits (N, classes)."""
    images = images.detach().requires_grad_()
    logits = model(images)
    return torch.autograd.grad(log_odds(logits, labels).sum(), images)[0], logits.detach()
