"""The tests of nets and of training share these small nets and detectors, whose weights are not 0 and 1 alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparring.models import classifier
from sparring.models.detector import TransformerDetector
from sparring.models.resnet import ResNet
from sparring.params.errors import InputError
from sparring.params.structures import Detector

MAPS = {"stem": (64, 32, 32), "layer1": (64, 32, 32), "layer2": (128, 16, 16), "layer3": (256, 8, 8)} | {
    "layer4": (512, 4, 4)
}


def stirred(net: ResNet, seed: int = 0) -> ResNet:
    """Give the net BatchNorm averages and weights that are not 0 and 1, so that folding them shows."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return net


def small(classes: int = 10, width: int = 4, seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return stirred(ResNet((1, 2, 1, 1), width, classes), seed)


def fails(match: str, call: Callable[[], object]) -> None:
    """Check that a call raises InputError in one line that matches."""
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def detecting(**changes: object) -> Detector:
    values: dict[str, object] = {"input": "full", "layers": 2, "tokens": "auto", "centre": "layer2", "dropout": 0.0}
    values |= {"alpha": 1.0, "beta": 1.0, "order": "before", "learning_rate": 0.01}
    return Detector.model_validate(values | changes)


def detector_for(shapes: dict[str, tuple[int, int, int]], seed: int = 0, **changes: object) -> TransformerDetector:
    torch.manual_seed(seed)
    return TransformerDetector(detecting(**changes), shapes)


def some_maps(shapes: dict[str, tuple[int, int, int]], count: int = 2) -> dict[str, Tensor]:
    return {name: torch.randn(count, *shape) for name, shape in shapes.items()}


SMALL = classifier.map_shapes(ResNet((1, 1, 1, 1), 4, 10), 16)
