import torch
from torch import Tensor, nn


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, overshoot: float) -> Tensor:
    """The least L2 change to the nearest linearised class boundary, step by step
    (Moosavi-Dezfooli et al., 2016, arXiv 1511.04599).

    images: (N, 3, H, W) in [0, 1].  labels: (N,).  steps: at most so many.  overshoot: share by which each step
    goes past the boundary.  An image that the model takes for another class than its label is finished and leaves the
    batch; one that it got wrong to begin with comes back unchanged.
    """
    adversarial = images.clone()
    rows = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        current = adversarial[rows].requires_grad_()
        logits = model(current)
        going = (logits.argmax(1) == labels[rows]).nonzero()[:, 0]
        if len(going) == 0:
            break
        if len(going) < len(rows):
            rows = rows[going]
            current = adversarial[rows].requires_grad_()
            logits = model(current)
        adversarial[rows] = (current.detach() + (1 + overshoot) * _to_boundary(current, logits, labels[rows])).clamp(
            0, 1
        )
    return adversarial


def _to_boundary(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The step (N, 3, H, W) to the nearest boundary of the linearised model."""
    own = logits.gather(1, labels[:, None])
    classes = logits.shape[1]
    best_distance = torch.full_like(labels, torch.inf, dtype=logits.dtype)
    best = torch.zeros_like(images)
    own_gradient = torch.autograd.grad(own.sum(), images, retain_graph=True)[0]
    for other in range(classes):
        gradient = torch.autograd.grad(logits[:, other].sum(), images, retain_graph=True)[0] - own_gradient
        gap = (logits[:, other] - own[:, 0]).detach().abs()
        norm = gradient.flatten(1).norm(dim=1)
        distance = torch.where(labels == other, torch.inf, gap / norm)
        nearer = distance < best_distance
        best_distance = torch.where(nearer, distance, best_distance)
        step = (gap / norm.square()).nan_to_num(0, 0, 0).view(-1, 1, 1, 1) * gradient
        best = torch.where(nearer.view(-1, 1, 1, 1), step, best)
    return best
