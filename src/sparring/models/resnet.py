"""The ResNet for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

from sparring.models.classifier import Classifier
from sparring.models.convolution import Pointwise

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")


class Block(nn.Module):
    """The basic residual block (He et al., 2016, arXiv 1512.03385): two 3×3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1: nn.Module = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(Pointwise(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps), inplace=True)


class ResNet(Classifier):
    """The ResNet for small images: a 3×3 stem of stride 1, no max-pooling, and four stages of basic blocks.

    blocks (3, 4, 6, 3) at width 64 is ResNet-34. Images are (N, 3, H, W) in [0, 1], not normalised.
    """

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True))
        channels = width
        for number, depth in enumerate(blocks):
            stage = nn.Sequential()
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                stage.append(Block(channels, width * 2**number, stride))
                channels = width * 2**number
            setattr(self, LAYERS[number + 1], stage)
        self.fc = nn.Linear(channels, classes)

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        """Return the maps that every Classifier has, and the stem's map before them."""
        maps: dict[str, Tensor] = {}
        flow = images
        for name in LAYERS[: LAYERS.index(last or LAYERS[-1]) + 1]:
            flow = maps[name] = getattr(self, name)(flow)
        return maps

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return self.fc(maps[LAYERS[-1]].mean((2, 3)))
