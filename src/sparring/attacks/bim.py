from torch import Tensor, nn

from sparring.attacks.losses import loss_gradient


def bim(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step: float, first_step: float, steps: int
) -> Tensor:
    """Run the basic iterative method (Kurakin et al., 2017, arXiv 1607.02533): it makes signed-gradient steps and
    projects each to the eps ball.

    images: (N, 3, H, W) in [0, 1].  eps: largest change of a pixel; first_step, step: change by the first step and by
    each later one, same unit.  Returns images of the same shape, within eps of the input and in [0, 1].
    """
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    adversarial = images
    for number in range(steps):
        size = step if number else first_step
        gradient = loss_gradient(model, adversarial, labels)
        adversarial = (adversarial + size * gradient.sign()).clamp(low, high)
    return adversarial
