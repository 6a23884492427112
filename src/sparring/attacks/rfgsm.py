import torch
from torch import Tensor, nn

from sparring.attacks.losses import loss_gradient


def rfgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, alpha: float, noise: Tensor) -> Tensor:
    """Make a step along the signs of Gaussian noise, then one along the signs of the gradient there (R+FGSM, Tramèr
    et al., 2018, arXiv 1705.07204, which has alpha = eps / 2).

    images: (N, 3, H, W) in [0, 1].  alpha: length of the first step; eps: length of both together, the largest change
    of a pixel, same unit.  noise: (N, 3, H, W), standard normal.
    Returns images of the same shape, within eps of the input and in [0, 1].
    """
    start = (images + alpha * noise.sign()).clamp(0, 1)
    return torch.add(start, loss_gradient(model, start, labels).sign(), alpha=eps - alpha).clamp_(0, 1)
