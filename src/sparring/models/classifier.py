"""Every network has this interface: it is a classifier that returns its feature maps."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from sparring.device import on_device


class Classifier(nn.Module):
    """Maps images (N, 3, H, W) in [0, 1], not normalised, to logits (N, classes). It is every network's interface."""

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        """Return feature maps (N, channels, height, width) by name: layer1, layer2, … from the finest to the coarsest.

        last: the map after which to stop; None for a whole pass.
        """
        raise NotImplementedError

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        """Return logits (N, classes) from the maps of a whole pass."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.maps(images))


def layers(names: Iterable[str]) -> list[str]:
    """Return the names of the maps that the detector and the attacks read, in their order: layer1, layer2, …"""
    return [name for name in names if name.startswith("layer")]


def map_shapes(net: Classifier, size: int) -> dict[str, tuple[int, int, int]]:
    """Return (channels, height, width) of every feature map for images of size × size pixels."""
    weight = next(net.parameters())
    probe = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
    training = net.training
    with torch.no_grad():
        maps = net.eval().maps(probe)
    net.train(training)
    return {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in maps.items() if m.dim() == 4}


def to_images(stored: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Convert stored levels (N, H, W, C) to images (N, C, H, W) in [0, 1], float32, in channels_last order."""
    tensor = on_device(stored, device) if isinstance(stored, np.ndarray) else stored.to(device)
    return tensor.permute(0, 3, 1, 2).float().div_(255)


@torch.no_grad()
def predict(net: nn.Module, stored: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Return softmax probabilities (N, classes), float32, of stored images. The net is run in eval mode and in true
    float32.

    Every prediction that is stored or counted comes from this function, so that no two of them can disagree.
    """
    net.eval()
    if not len(stored):  # the net is run on one image to learn the number of classes
        stored = np.resize(np.arange(256, dtype=np.uint8), (1, *stored.shape[1:]))
        return predict(net, stored, 1, device)[:0]
    parts = [
        net(to_images(stored[start : start + batch_size], device)).softmax(1).cpu().numpy()
        for start in range(0, len(stored), batch_size)
    ]
    return np.concatenate(parts)
