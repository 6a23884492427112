"""Image classifiers that return their feature maps."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparring.files import replacing
from sparring.params import InputError, Network

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")
METADATA_KEY = "sparring"


class Block(nn.Module):
    """Basic residual block (He et al., 2016, arXiv 1512.03385): two 3×3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1: nn.Module = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps), inplace=True)


class ResNet(nn.Module):
    """ResNet for small images: 3×3 stem of stride 1, no max-pooling, four stages of basic blocks.

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

    def maps(self, images: Tensor, last: str = LAYERS[-1]) -> dict[str, Tensor]:
        """Feature maps (N, channels, height, width) by name, from the stem up to the one named by `last`."""
        maps: dict[str, Tensor] = {}
        flow = images
        for name in LAYERS[: LAYERS.index(last) + 1]:
            flow = maps[name] = getattr(self, name)(flow)
        return maps

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        """Logits (N, classes) from the maps of a whole pass."""
        return self.fc(maps[LAYERS[-1]].mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.maps(images))


def create(network: Network, classes: int) -> ResNet:
    """The classifier that params.yaml describes, with PyTorch's random weights (seed torch before)."""
    return ResNet(tuple(network.blocks), network.width, classes)


def map_shapes(net: ResNet, size: int) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) of every feature map for square images of `size` pixels."""
    weight = next(net.parameters())
    probe = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
    training = net.training
    with torch.no_grad():
        maps = net.eval().maps(probe)
    net.train(training)
    return {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in maps.items()}


def frozen(net: ResNet) -> ResNet:
    """A copy for attacks: in eval mode, parameters without gradient, every BatchNorm folded into its convolution."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    net.stem = nn.Sequential(_folded(net.stem[0], net.stem[1]), net.stem[2])
    for module in net.modules():
        if isinstance(module, Block):
            module.conv1, module.norm1 = _folded(module.conv1, module.norm1), nn.Identity()
            module.conv2, module.norm2 = _folded(module.conv2, module.norm2), nn.Identity()
            if len(module.shortcut):
                module.shortcut = nn.Sequential(_folded(module.shortcut[0], module.shortcut[1]))
    return net


def _folded(conv: Any, norm: Any) -> nn.Conv2d:
    return fuse_conv_bn_eval(conv, norm).requires_grad_(False)


def to_images(stored: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """(N, H, W, C) as stored → (N, C, H, W) float32 in [0, 1]: a view in channels_last order, divided once."""
    tensor = torch.from_numpy(stored) if isinstance(stored, np.ndarray) else stored
    return tensor.to(device).permute(0, 3, 1, 2).float().div_(255)


def digest(net: nn.Module) -> str:
    """Hexadecimal SHA-256 of a model's tensors, names and shapes: the same whatever file or device holds them."""
    found = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def save_model(module: nn.Module, path: Path, facts: dict[str, object]) -> None:
    """Write the module's tensors as safetensors, with `facts` as JSON in its one metadata key."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {METADATA_KEY: json.dumps(facts, sort_keys=True)}))


def facts(path: Path) -> dict[str, object]:
    """What save_model noted beside the tensors. Raises InputError for a file that is missing or not ours."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {})[METADATA_KEY]))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a model file of Sparring ({error}); delete it and run `dvc repro`") from error


def load_into(module: nn.Module, path: Path) -> None:
    """Fill a module with a file's tensors. Raises InputError where they are those of another architecture."""
    facts(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{path} holds another architecture than params.yaml describes: {name} is "
                f"{_shape(found.get(name))}, not {_shape(expected.get(name))}; delete it and run `dvc repro`"
            )
    module.load_state_dict(tensors)


def load(network: Network, classes: int, path: Path) -> ResNet:
    """The classifier that params.yaml describes, with the tensors of a file."""
    net = create(network, classes)
    load_into(net, path)
    return net


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a scalar"


@torch.no_grad()
def predict(net: nn.Module, stored: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Softmax probabilities (N, classes), float32, of images as stored: the original model, in eval mode, true float32.

    Every prediction that is stored or counted comes from here, so that no two of them can disagree.
    """
    net.eval()
    parts = [
        net(to_images(stored[start : start + batch_size], device)).softmax(1).cpu().numpy()
        for start in range(0, len(stored), batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
