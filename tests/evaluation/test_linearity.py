"""Gradient norms and local linearity errors against closed forms."""

import numpy as np
import torch
from torch import Tensor

from sparring.device import choose
from sparring.evaluation import linearity
from sparring.models.resnet import ResNet
from sparring.params import Params
from sparring.store import Images

CENTRE = torch.linspace(0.2, 0.8, 48).view(3, 4, 4)


def curved(images: Tensor) -> Tensor:
    """Logits whose cross-entropy for class 0 is 50 + the squared distance from CENTRE, to float32's last bits."""
    return torch.stack([torch.zeros(len(images)), 50 + (images - CENTRE).square().flatten(1).sum(1)], 1)


def test_the_error_of_a_square_is_that_of_the_farthest_corner() -> None:
    images, labels = torch.rand(5, 3, 4, 4), torch.zeros(5, dtype=torch.long)
    starts = 2 * torch.rand(5, 3, 4, 4) - 1
    norm, error = linearity.measure(curved, images, labels, 0.1, 10, starts)
    torch.testing.assert_close(norm, 2 * (images - CENTRE).flatten(1).norm(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(error, torch.full((5,), 48 * 0.01), rtol=1e-3, atol=1e-4)


def test_a_linear_loss_has_no_error() -> None:
    weight = torch.linspace(-1, 1, 48)

    def model(images: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(images)), 40 + images.flatten(1) @ weight], 1)

    images = torch.rand(4, 3, 4, 4)
    norm, error = linearity.measure(model, images, torch.zeros(4, dtype=torch.long), 0.2, 5, torch.rand(4, 3, 4, 4))
    torch.testing.assert_close(norm, weight.norm().expand(4), rtol=1e-4, atol=1e-4)
    assert error.max() < 1e-4


def test_rows_are_of_each_image_whatever_the_number_of_steps(net: ResNet, digits: Images, tiny: Params) -> None:
    device = choose(tiny())  # type: ignore[operator]
    few, more = (linearity.linearity_rows(net, digits[:30], 0.1, steps, 0, 30, device) for steps in (1, 10))
    assert np.array_equal(few["index"], digits.index[:30]) and few["gradient_norm"].equals(more["gradient_norm"])
    assert (few["gradient_norm"] > 0).all()
    assert more["linearity_error"].mean() > few["linearity_error"].mean()
    farther = linearity.linearity_rows(net, digits[:30], 0.2, 10, 0, 30, device)
    assert farther["linearity_error"].mean() > more["linearity_error"].mean()
