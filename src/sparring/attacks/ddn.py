import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.attacks.graphs import in_a_graph, rows_to_keep
from sparring.attacks.losses import log_odds, logits_of, unit


def ddn(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, gamma: float, start: float) -> Tensor:
    """Run decoupled direction and norm, a minimal-norm L2 attack (Rony et al., 2019, arXiv 1811.09600). Each step turns
    the change along the gradient, then makes it shorter by `gamma` after a success and longer after a failure.

    images: (N, 3, H, W) in [0, 1].  start: the first length.  Returns each image's nearest success; or the image itself
    where there was none, or where the model misclassified it from the start.
    """
    active = logits_of(model, images).argmax(1) == labels
    kept_rows = rows_to_keep(active, 0)
    rows = torch.arange(len(images), device=images.device) if kept_rows is None else kept_rows
    inner, own, active = images[rows], labels[rows], active[rows]
    best, nearest = inner, torch.full((len(rows),), torch.inf, device=images.device)
    change, length = torch.zeros_like(inner), torch.full((len(rows), 1, 1, 1), start, device=images.device)
    for number in range(steps if len(rows) else 0):
        current = inner + change
        gradient, logits = _gradient(model, current, own)
        fools = logits.argmax(1) != own
        distance = change.flatten(1).norm(dim=1)
        nearer = active & fools & (distance < nearest)
        best, nearest = torch.where(nearer.view(-1, 1, 1, 1), current, best), torch.where(nearer, distance, nearest)
        # As in the article, the step falls from 1 to 0.01 along a cosine.
        step = 0.01 + 0.99 * (1 + math.cos(math.pi * number / steps)) / 2
        change = change + step * unit(gradient)
        length = length * torch.where(fools, 1 - gamma, 1 + gamma).view(-1, 1, 1, 1)
        change = (inner + length * unit(change)).clamp(0, 1) - inner
    adversarial = images.clone()
    adversarial[rows] = best
    return adversarial


@in_a_graph
def _gradient(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return the gradient (N, 3, H, W) of the log odds against the labels, and the logits (N, classes)."""
    images = images.detach().requires_grad_()
    logits = model(images)
    return torch.autograd.grad(log_odds(logits, labels).sum(), images)[0], logits.detach()
