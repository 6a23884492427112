from torch import Tensor, nn

from sparring.attacks.losses import loss_gradient


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float) -> Tensor:
    """Make one signed-gradient step (Goodfellow et al., 2015, arXiv 1412.6572).

    images: (N, 3, H, W) in [0, 1].  eps: largest change of a pixel, same unit.
    Returns images of the same shape, within eps of the input and in [0, 1].
    """
    return (images + eps * loss_gradient(model, images, labels).sign()).clamp(0, 1)
