import torch
from torch import Tensor, nn


def gaussian(model: nn.Module, images: Tensor, labels: Tensor, *, std: float, noise: Tensor) -> Tensor:
    """Add Gaussian noise and clip to [0, 1]. It uses neither gradient nor model: it is the control among the attacks.

    images: (N, 3, H, W) in [0, 1].  std: standard deviation, same unit.  noise: (N, 3, H, W), standard normal.
    """
    return torch.add(images, noise, alpha=std).clamp_(0, 1)
