import inspect
from typing import Any

from torch import Tensor, nn

from sparring.params.attacks import TORCHATTACKS


def run(method: str, model: nn.Module, images: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
    """Run an attack of torchattacks by the name of its class, as `torchattacks.PGD`, with that class's arguments.

    images: (N, 3, H, W) in [0, 1].  Returns images of the same shape and range.
    """
    # Imported here, as it takes longer to load than our own attacks take on a small data set.
    import torchattacks

    attack_class = getattr(torchattacks, method.removeprefix(TORCHATTACKS))
    if "n_classes" in inspect.signature(attack_class).parameters and "n_classes" not in arguments:
        arguments["n_classes"] = model(images[:1]).shape[1]
    attack = attack_class(model, **arguments)
    with model.register_forward_pre_hook(_contiguous_gradient):
        return attack(images.contiguous(), labels)


def _contiguous_gradient(model: nn.Module, inputs: tuple[Tensor]) -> None:
    # A channels_last model gives channels_last gradients, on which torchattacks' `grad.view(N, -1)` fails.
    if inputs[0].requires_grad:
        inputs[0].register_hook(lambda gradient: gradient.contiguous())
