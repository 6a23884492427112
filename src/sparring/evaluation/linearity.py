"""How nearly constant, and how nearly linear, a net's loss is around an image."""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring import store
from sparring.attacks import engine
from sparring.data.draws import Draws
from sparring.models import classifier
from sparring.models.classifier import Classifier


def linearity_rows(
    net: Classifier, images: store.Images, eps: float, steps: int, seed: int, batch_size: int, device: torch.device
) -> pd.DataFrame:
    """Return one row per image: index, and gradient_norm and linearity_error, which `measure` describes.

    seed: the starts are drawn from it, image by image. A net that predicts at random is measured under the draws that
    it predicts with, as two draws would differ by more than two images.
    """
    model, draws = engine.Fast(net, device, torch.float32), Draws(seed, "linearity")
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels = classifier.to_images(batch.image, device)
        noise = 2 * draws.uniform(batch.index, pixels[0].numel()) - 1
        starts = torch.from_numpy(noise).to(device, torch.float32).view_as(pixels)
        norm, error = measure(model, pixels, torch.from_numpy(batch.label).to(device), eps, steps, starts)
        rows = {"index": batch.index, "gradient_norm": norm.cpu().numpy(), "linearity_error": error.cpu().numpy()}
        parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def measure(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, eps: float, steps: int, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the L2 norm of the cross-entropy's gradient by each image (N,), and the local linearity error (N,).

    That error is the largest |loss(x + d) − loss(x) − d · gradient(x)| over changes d within eps in L∞ (Qin et al.,
    2019, arXiv 1907.02610), as `steps` signed-gradient steps from `starts` find it.

    images: (N, 3, H, W) in [0, 1].  starts: of their shape, in [-1, 1].
    """

    def losses(changed: Tensor) -> Tensor:
        return F.cross_entropy(model(changed), labels, reduction="none")

    point = images.detach().requires_grad_()
    clean_losses = losses(point)
    gradient = torch.autograd.grad(clean_losses.sum(), point)[0]
    clean_losses = clean_losses.detach()

    def error(change: Tensor) -> Tensor:
        return (losses(images + change) - clean_losses - (change * gradient).flatten(1).sum(1)).abs()

    change, largest = eps * starts, torch.zeros_like(clean_losses)
    for number in range(steps + 1):
        change = change.detach().requires_grad_()
        errors = error(change)
        largest = torch.maximum(largest, errors.detach())
        if number < steps:
            direction = torch.autograd.grad(errors.sum(), change)[0].sign()
            change = (change + 2.5 * eps / steps * direction).clamp(-eps, eps)
    return gradient.flatten(1).norm(dim=1), largest
