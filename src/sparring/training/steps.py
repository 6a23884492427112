"""Defines how a net learns from one batch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring import distributed
from sparring.models.classifier import Classifier
from sparring.params.sections import Training

Penalty = Callable[[Tensor], Tensor]
"""A penalty maps the net's logits (n, classes) to a mean over the images, which is added to the loss."""


class Step(NamedTuple):
    """Defines how a structure learns from one batch.

    run: takes images (N, 3, H, W) in [0, 1], labels (N,), which images are adversarial (N,) bool, and maybe a penalty.
    It updates the nets and returns sums over the batch, on the device: fetching them every step would stall it. One of
    several processes passes its slice of the images with the labels of the whole batch, and gets the sums over its
    slice.
    optimizers: those that `run` steps, for the loop to lower their learning rates.
    helpers: nets that `run` trains beside the classifier.
    """

    run: Callable[..., dict[str, Tensor]]
    optimizers: list[torch.optim.Optimizer]
    helpers: tuple[nn.Module, ...] = ()


def plain_step(net: Classifier, settings: Training, dtype: torch.dtype) -> Step:
    """Return the step of cross-entropy alone: the pretrained net's, and that of the paper's "Adv" row."""
    optimizer = sgd(net, settings.learning_rate, settings)

    def forward(images: Tensor, labels: Tensor, penalty: Penalty | None) -> tuple[Tensor, Tensor]:
        with autocast(images.device, dtype):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        return loss if penalty is None else loss + penalty(logits.float()), logits

    forward_of_all = distributed.parallel(net, forward)

    def run(images: Tensor, labels: Tensor, adversarial: Tensor, penalty: Penalty | None = None) -> dict[str, Tensor]:
        batch_size, labels = len(labels), distributed.mine(labels)
        loss, logits = forward_of_all(images, labels, penalty)
        update(optimizer, distributed.weighted(loss, batch_size))
        return {"loss": loss.detach() * len(labels), "accuracy": (logits.argmax(1) == labels).sum()}

    return Step(run, [optimizer])


def sgd(module: nn.Module, learning_rate: float, settings: Training) -> torch.optim.SGD:
    """Create SGD for a module's parameters, with the momentum and weight decay of `training`."""
    # Fused, an update takes 40 % of the time on a CPU and a step of a GPU four fifths (docs/log.md).
    return torch.optim.SGD(
        module.parameters(), learning_rate, settings.momentum, weight_decay=settings.weight_decay, fused=True
    )


def scheduler(optimizer: torch.optim.Optimizer, settings: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Create the learning rate's schedule over `steps` steps that `training.schedule` names (see docs/method.md)."""
    schedules = torch.optim.lr_scheduler
    if settings.schedule == "step":
        return schedules.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4])
    if settings.schedule == "cosine":
        return schedules.CosineAnnealingLR(optimizer, steps)
    if settings.schedule == "one_cycle":
        return schedules.OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], steps, cycle_momentum=False)
    return schedules.LambdaLR(optimizer, lambda step: 1.0)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step of the optimizer down the gradient of a loss, a scalar."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return a context in which matrix products are computed in `dtype`; it does nothing for float32."""
    # Without its cache of weights in the other precision, which must not be in one CUDA graph and used outside of it.
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=device.type != "cuda")
