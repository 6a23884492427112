from collections.abc import Callable

import torch
from torch import Tensor

from sparring.attacks.graphs import in_a_graph


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log odds against each image's label (N,): logsumexp of the other logits minus the label's logit.

    Cross-entropy is the softplus of the log odds. So its gradient is theirs times sigmoid(log odds), a positive number
    for each image, and both gradients have the same direction. But that factor vanishes for a net that is sure of its
    answer: in float32, the label's part of the cross-entropy is 0 from a margin of about 17 on. The gradient of the
    log odds keeps its size whatever the margin.
    """
    own = labels[:, None]
    return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how far the logit of each image's label is above the highest other logit (N,)."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


@in_a_graph
@torch.no_grad()
def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits (N, classes), without gradient."""
    return model(images)


@in_a_graph
def loss_gradient(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, loss: str = "cross_entropy"
) -> Tensor:
    """Return the gradient (N, 3, H, W) along which each image's loss rises: that of the log odds for `cross_entropy`,
    whose gradient has the same direction; that of the highest other logit minus the label's for `margin`."""
    images = images.detach().requires_grad_()
    logits = model(images)
    rise = log_odds(logits, labels) if loss == "cross_entropy" else -margin(logits, labels)
    return torch.autograd.grad(rise.sum(), images)[0]


def unit(change: Tensor) -> Tensor:
    """Scale each image's change (N, …) to an L2 length of 1, however small it is. A change of 0 stays 0."""
    flat = change.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    # Divided by the largest first: the squares of small numbers are 0 in float32.
    scaled = flat / torch.where(largest > 0, largest, 1)
    return (scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1)).view_as(change)
