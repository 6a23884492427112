import torch
from torch import Tensor

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
    first ("style") and last ("content") maps of image and partner (layer1 and layer4); style `gram` compares the Gram
    matrices of the first.
    Each image has its own loss, so its result does not depend on its neighbours. Returns images in [0, 1].
    """

    def look(batch: Tensor) -> tuple[Tensor, Tensor]:
        maps = model.maps(batch)
        names = layers(maps)
        first = maps[names[0]].flatten(2)
        if style == "gram":
            first = first @ first.transpose(1, 2) / first.shape[2]
        return first.flatten(1), maps[names[-1]].flatten(1)

    with torch.no_grad():
        wanted = look(partners)
    flow = images.clone().requires_grad_()
    optimizer = torch.optim.SGD([flow], learning_rate, momentum=momentum, weight_decay=weight_decay)
    for _ in range(steps):
        have = look(flow)
        # The mean is over an image's own map; the sum over images keeps their gradients apart.
        loss = (have[0] - wanted[0]).square().mean(1).sum() + (have[1] - wanted[1]).square().mean(1).sum()
        flow.grad = torch.autograd.grad(loss, flow)[0]
        optimizer.step()
        with torch.no_grad():
            flow.clamp_(0, 1)
    return flow.detach()
