import torch
from torch import Tensor

from sparring.attacks.graphs import in_a_graph
from sparring.models.classifier import Classifier, layers


def nst(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    style: str,
    partners: Tensor,
) -> Tensor:
    """Move each image towards an image of another class in the model's feature space, after neural style transfer
    (Gatys et al., 2016) as arXiv 2204.11596 uses it.

    images, partners: (N, 3, H, W) in [0, 1].  SGD on the pixels, by the sum of the mean squared differences of the
    first ("style") and last ("content") maps of image and partner (layer1 and layer4). Style `gram` compares the Gram
    matrices of the first maps.
    Each image has its own loss, so its result does not depend on its neighbours. Returns images in [0, 1].
    """

    with torch.no_grad():
        goals = _style_and_content(model, partners, style)
    adversarial = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([adversarial], learning_rate, momentum=momentum, weight_decay=weight_decay)
    for _ in range(steps):
        adversarial.grad = _gradient(model, adversarial, *goals, style=style)
        optimizer.step()
        with torch.no_grad():
            adversarial.clamp_(0, 1)
    return adversarial.detach()


def _style_and_content(model: Classifier, images: Tensor, style: str) -> tuple[Tensor, Tensor]:
    """Return the features by which style and content are compared, (N, …) each."""
    maps = model.maps(images)
    names = layers(maps)
    first = maps[names[0]].flatten(2)
    if style == "gram":
        first = first @ first.transpose(1, 2) / first.shape[2]
    return first.flatten(1), maps[names[-1]].flatten(1)


@in_a_graph
def _gradient(model: Classifier, images: Tensor, first: Tensor, last: Tensor, *, style: str) -> Tensor:
    """Return the gradient, by the images, of the distance of their style and content from `first` and `last`."""
    images = images.detach().requires_grad_()
    features = _style_and_content(model, images, style)
    # The mean is over an image's own map; the sum over images keeps their gradients apart.
    loss = (features[0] - first).square().mean(1).sum() + (features[1] - last).square().mean(1).sum()
    return torch.autograd.grad(loss, images)[0]
