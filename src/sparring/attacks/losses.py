from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_gradient(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Gradient (N, 3, H, W) of each image's own cross-entropy."""
    images = images.detach().requires_grad_()
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far each image's own logit is above the highest other one (N,)."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)
