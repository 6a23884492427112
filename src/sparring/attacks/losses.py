from collections.abc import Callable

import torch
from torch import Tensor

from sparring.attacks.graphs import in_a_graph


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """The log odds against each image's label (N,): logsumexp of the other logits minus its own.

    Cross-entropy is softplus of them, so its gradient is theirs times sigmoid(log odds), a positive number for each
    image. Whoever follows only the direction of an image's gradient goes the same way up either. But that factor
    vanishes for a net that is sure of its answer (in float32, cross-entropy's own-class part is 0 from a margin of
    about 17 on), while the gradient of the log odds keeps its size whatever the margin.
    """
    own = labels[:, None]
    return logits.scatter(1, own, -torch.inf).logsumexp(1) - logits.gather(1, own)[:, 0]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far each image's own logit is above the highest other one (N,)."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


@in_a_graph
@torch.no_grad()
def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The logits (N, classes), without gradient."""
    return model(images)


@in_a_graph
def loss_gradient(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, *, loss: str = "cross_entropy"
) -> Tensor:
    """The gradient (N, 3, H, W) up which each image's own loss rises: of the log odds for `cross_entropy`, whose
    gradient has the same direction; of the highest other logit minus its own for `margin`."""
    images = images.detach().requires_grad_()
    logits = model(images)
    rise = log_odds(logits, labels) if loss == "cross_entropy" else -margin(logits, labels)
    return torch.autograd.grad(rise.sum(), images)[0]


def unit(change: Tensor) -> Tensor:
    """Each image's change (N, …) brought to an L2 length of 1, however small it is; a change of 0 stays 0."""
    flat = change.flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    # Divided by the largest first: the squares of small numbers are 0 in float32.
    scaled = flat / torch.where(largest > 0, largest, 1)
    return (scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1)).view_as(change)
