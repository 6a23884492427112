"""The second article's networks: four are for traffic signs, two for faces.

The article's table of the sign networks' layers is lost. So dnn1 to dnn4 are four known kinds of network, each made
small for 32×32 pixels. mtcnn and facenet begin with a fixed bilinear resize to the size that their layers were made
for, through which gradients pass, so that images and attacks stay at their own size.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparring.models.classifier import Classifier
from sparring.models.resnet import Block
from sparring.params.errors import InputError

ONET_SIDE = 48  # pixels


class Staged(Classifier):
    """Runs stages in turn, each of which gives a map: layer1, layer2, …; then a head, which gives the logits."""

    def __init__(self, stages: Sequence[nn.Module], head: nn.Module, side: int | None = None) -> None:
        """side: of the square, in pixels, to which images are resized first; None where they are not."""
        super().__init__()
        self.side = side
        self.names = [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, stage in zip(self.names, stages, strict=True):
            setattr(self, name, stage)
        self.head = head

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        flow, maps = images, {}
        if self.side is not None:
            flow = F.interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False)
        for name in self.names[: self.names.index(last or self.names[-1]) + 1]:
            flow = maps[name] = getattr(self, name)(flow)
        return maps

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return self.head(maps[self.names[-1]])


def create(name: str, classes: int, image_size: int, dropout: float) -> Staged:
    """Create one of NETWORKS, with random weights, for images of image_size × image_size pixels.

    dropout: share of the inputs of each hidden or last fully connected layer that is dropped in training.
    Raises InputError where the images are too small for its layers.
    """
    stages, hidden, side = NETWORKS[name]()
    # Hidden layers read each position separately; without any, the positions are averaged, as in a ResNet.
    head: list[nn.Module] = [nn.Flatten()] if hidden else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    try:
        with torch.no_grad():
            probe = torch.zeros(1, 3, side or image_size, side or image_size)
            features = nn.Sequential(*stages, *head).eval()(probe).numel()
    except RuntimeError as error:
        raise InputError(
            f"params.yaml: network.name is {name}, which cannot read images of {image_size} pixels; use a larger "
            "data.image_size or another network"
        ) from error
    for width in hidden:
        head += [nn.Dropout(dropout), nn.Linear(features, width), nn.ReLU(True)]
        features = width
    net = Staged(stages, nn.Sequential(*head, nn.Dropout(dropout), nn.Linear(features, classes)), side)
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        _start_evenly(net)
    return net


def _start_evenly(net: nn.Module) -> None:
    """Draw weights with which each map keeps the variance of the one before (He et al., 2015, arXiv 1502.01852).
    Without BatchNorm, torch's smaller default weights let it vanish, and SGD learns nothing."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


Built = tuple[list[nn.Module], list[int], int | None]
"""The stages, the widths of the hidden fully connected layers, and the side to which images are resized (or None)."""


def _conv(channels_in: int, channels: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(True),
    ]


def _dnn1() -> Built:
    """Build a net like AlexNet (Krizhevsky et al., 2012): large convolutions, then small ones; two hidden layers."""
    stages: list[nn.Module] = [
        nn.Sequential(*_conv(3, 16, 5), nn.MaxPool2d(2)),
        nn.Sequential(*_conv(16, 32, 5), nn.MaxPool2d(2)),
        nn.Sequential(*_conv(32, 64, 3), *_conv(64, 64, 3), nn.MaxPool2d(2)),
    ]
    return stages, [256, 256], None


def _dnn2() -> Built:
    """Build a small VGG (Simonyan and Zisserman, 2015, arXiv 1409.1556): paired 3×3 convolutions, one hidden layer."""
    stages: list[nn.Module] = [
        nn.Sequential(*_conv(inner, width, 3), *_conv(width, width, 3), nn.MaxPool2d(2))
        for inner, width in ((3, 16), (16, 32), (32, 64))
    ]
    return stages, [128], None


def _dnn3() -> Built:
    """Build a ResNet (He et al., 2016, arXiv 1512.03385) with one basic block per stage and no hidden layer."""
    stages: list[nn.Module] = [
        nn.Sequential(*_conv(3, 16, 3), Block(16, 16, 1)),
        Block(16, 32, 2),
        Block(32, 64, 2),
    ]
    return stages, [], None


def _dnn4() -> Built:
    """Build LeNet-5 (LeCun et al., 1998), with ReLU and max-pooling."""
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(True), nn.MaxPool2d(2)),
    ]
    return stages, [120, 84], None


def _mtcnn() -> Built:
    """Build the output network of MTCNN (Zhang et al., 2016, arXiv 1604.02878), with one head, for classes."""

    def step(channels_in: int, channels: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels, kernel), nn.PReLU(channels)]

    stages: list[nn.Module] = [
        nn.Sequential(*step(3, 32, 3), nn.MaxPool2d(3, 2, ceil_mode=True)),
        nn.Sequential(*step(32, 64, 3), nn.MaxPool2d(3, 2, ceil_mode=True)),
        nn.Sequential(*step(64, 64, 3), nn.MaxPool2d(2, 2, ceil_mode=True)),
        nn.Sequential(*step(64, 128, 2)),
    ]
    return stages, [256], ONET_SIDE


NETWORKS: dict[str, Callable[[], Built]] = {
    "dnn1": _dnn1,
    "dnn2": _dnn2,
    "dnn3": _dnn3,
    "dnn4": _dnn4,
    "mtcnn": _mtcnn,
}
