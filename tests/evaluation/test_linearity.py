"""Gradient norms and local linearity errors against closed forms."""

import numpy as np
import torch
from torch import Tensor

from sparring.data.transforms import RandomTransform
from sparring.evaluation import linearity
from sparring.models.averaged import Averaged
from sparring.models.resnet import ResNet
from sparring.params.transforms import Noise
from sparring.store import Images

CPU = torch.device("cpu")
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


def test_rows_are_of_each_image_whatever_its_batch(net: ResNet, digits: Images) -> None:
    few, more = (linearity.linearity_rows(net, digits[:30], 0.1, steps, 0, 30, CPU) for steps in (1, 10))
    assert np.array_equal(few["index"], digits.index[:30]) and few["gradient_norm"].equals(more["gradient_norm"])
    assert (few["gradient_norm"] > 0).all()
    assert more["linearity_error"].mean() > few["linearity_error"].mean()
    parts = linearity.linearity_rows(net, digits[:30], 0.1, 10, 0, 7, CPU)
    np.testing.assert_allclose(parts["linearity_error"], more["linearity_error"], rtol=0.05, atol=1e-3)
    farther = linearity.linearity_rows(net, digits[:30], 0.2, 10, 0, 30, CPU)
    assert farther["linearity_error"].mean() > more["linearity_error"].mean()


def test_a_net_that_predicts_at_random_is_measured_as_it_predicts(net: ResNet, digits: Images) -> None:
    noise = RandomTransform("noise", Noise(std=0.3, training=True, draws=4), ())
    averaged = Averaged(net, noise, 4, 0)
    one, other = (linearity.linearity_rows(averaged, digits[:10], 0.1, 3, 0, 10, CPU) for _ in range(2))
    assert one.equals(other)
    # Other draws for each pass would differ by much more than a change as small as this.
    assert linearity.linearity_rows(averaged, digits[:10], 1e-4, 3, 0, 10, CPU)["linearity_error"].max() < 1e-3
