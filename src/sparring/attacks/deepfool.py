from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.attacks.graphs import in_a_graph, rows_to_keep
from sparring.attacks.losses import logits_of

# After its first step an image is compared only with this many classes: those whose boundaries were nearest then.
# On ten classes the nearest boundary of a later step was always among them (docs/attacks.md has the measurement).
NEAREST = 3


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, overshoot: float) -> Tensor:
    """Run DeepFool (Moosavi-Dezfooli et al., 2016, arXiv 1511.04599): each step is the least L2 change to the nearest
    linearised class boundary.

    images: (N, 3, H, W) in [0, 1].  labels: (N,).  steps: the most that are made.  overshoot: share by which the whole
    change is lengthened, to end behind the boundary.  An image that the model misclassifies is finished and leaves the
    batch. One that it misclassified from the start is returned unchanged.
    """
    best = images.clone()
    rows = torch.arange(len(images), device=images.device)
    active = torch.ones_like(labels, dtype=torch.bool)
    start, current, change = images, images, torch.zeros_like(images)
    others: Tensor | None = None
    for _ in range(steps):
        # A pass without gradient first: it is cheap beside the gradients that finished images then do without.
        logits = logits_of(model, current)
        active = active & (logits.argmax(1) == labels)
        others = _other_classes(labels, logits.shape[1]) if others is None else others
        stay = rows_to_keep(active, 0)
        if stay is not None:
            best[rows] = current
            rows, active, labels, start, current, change, others = (
                part[stay] for part in (rows, active, labels, start, current, change, others)
            )
        if len(rows) == 0:
            break
        # The next step starts from the change as it is; only what is judged, and returned, is lengthened.
        step, distance = _to_boundary(model, (start + change).clamp(0, 1), labels, others)
        change = change + step
        lengthened = (start + (1 + overshoot) * change).clamp(0, 1)
        current = torch.where(active.view(-1, 1, 1, 1), lengthened, current)
        others = others.gather(1, distance.topk(min(NEAREST, distance.shape[1]), largest=False).indices)
    best[rows] = current
    return best


def _other_classes(labels: Tensor, count: int) -> Tensor:
    """Return all of `count` classes but each image's label, in their order (N, count - 1)."""
    classes = torch.arange(count - 1, device=labels.device).expand(len(labels), -1)
    return classes + (classes >= labels[:, None])


@in_a_graph
def _to_boundary(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, others: Tensor
) -> tuple[Tensor, ...]:
    """Return the step (N, 3, H, W) to the nearest of the linearised boundaries to the classes `others` (N, K), and
    the distance (N, K) of each of them. There is one backward pass for each column, which has a class for each image.
    """
    images = images.detach().requires_grad_()
    logits = model(images)
    gaps = logits.gather(1, labels[:, None]) - logits.gather(1, others)
    distances = []
    best = torch.zeros_like(images)
    nearest = torch.full_like(gaps[:, 0], torch.inf)
    for column in range(others.shape[1]):
        last = column + 1 == others.shape[1]
        gradient = torch.autograd.grad(gaps[:, column].sum(), images, retain_graph=not last)[0]
        gap = gaps[:, column].detach()
        norm = gradient.flatten(1).norm(dim=1)
        distance = (gap / norm).nan_to_num(torch.inf)
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        step = (gap / norm.square()).nan_to_num(0, 0, 0).view(-1, 1, 1, 1) * -gradient
        best = torch.where(nearer.view(-1, 1, 1, 1), step, best)
        distances.append(distance)
    return best, torch.stack(distances, 1)
