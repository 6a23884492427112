"""Image classifiers that return their feature maps."""

import copy
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparring.files import replacing
from sparring.params import InputError, Network

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")
METADATA_KEY = "sparring"
MAPS = 4
# Where a classifier of torchvision stops to look at places.
HEAD = (nn.AdaptiveAvgPool2d, nn.Dropout)
# The coarsest grid of patches that torchvision's own Vision Transformers have.
LEAST_GRID = 7
ONEDNN_BLOCK = 16  # channels that oneDNN's kernels take at once, at most


class Classifier(nn.Module):
    """What every network is to the others: images (N, 3, H, W) in [0, 1], not normalised → logits (N, classes)."""

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        """Feature maps (N, channels, height, width) by name: layer1, layer2, … from the finest to the coarsest.

        last: the map at which to stop; None for a whole pass.
        """
        raise NotImplementedError

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        """Logits (N, classes) from the maps of a whole pass."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.maps(images))


def layers(names: Iterable[str]) -> list[str]:
    """Those of a net's maps that the detector and the attacks read, in their order: layer1, layer2, …"""
    return [name for name in names if name.startswith("layer")]


class Pointwise(nn.Conv2d):
    """A 1×1 convolution with a stride, computed as the 1×1 convolution of every stride-th pixel: the same numbers.

    oneDNN's own gradient of such a convolution's weights, in channels_last and float32, writes past its memory where
    there are fewer input channels than its block of 8 (AVX2) or 16 (AVX-512): its issue 6035, open in torch 2.15.
    """

    def forward(self, images: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(images[:, :, ::down, ::across], self.weight, self.bias, groups=self.groups)


def spare_onednn(net: nn.Module) -> None:
    """Make every convolution of the net Pointwise, in place, where oneDNN would compute its gradient wrongly."""
    for conv in net.modules():
        if type(conv) is not nn.Conv2d or conv.in_channels >= ONEDNN_BLOCK:
            continue
        if conv.kernel_size == (1, 1) != conv.stride and conv.padding == (0, 0):
            conv.__class__ = Pointwise


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
            self.shortcut.append(Pointwise(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps), inplace=True)


class ResNet(Classifier):
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

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        """As of every Classifier, with the stem's map before them."""
        maps: dict[str, Tensor] = {}
        flow = images
        for name in LAYERS[: LAYERS.index(last or LAYERS[-1]) + 1]:
            flow = maps[name] = getattr(self, name)(flow)
        return maps

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return self.fc(maps[LAYERS[-1]].mean((2, 3)))


class _Seen(Exception):
    """The last map that was asked for is there."""


class Torchvision(Classifier):
    """Any classifier of torchvision, with random weights, for images of one size.

    Its maps are found by their resolution: at each, the last map before the next one, and of those the four coarsest;
    fewer where the images are so small that there are fewer. A Vision Transformer, whose tokens all have one
    resolution, gives the patch tokens after each quarter of its blocks. A whole pass has its logits among its maps.
    """

    def __init__(self, name: str, classes: int, image_size: int) -> None:
        """Raises InputError where this net cannot read images of this size, in pixels."""
        super().__init__()
        try:
            self.net = _torchvision(name, classes, image_size)
            spare_onednn(self.net)
            mapped = _mapped_modules(self.net, image_size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(
                f"params.yaml: network.name is {name}, which cannot read images of {image_size} pixels "
                f"({' '.join(str(error).split())[:200]}); use a larger data.image_size or another network"
            ) from error
        self.found: dict[str, Tensor] = {}
        self.last: str | None = None
        for number, (path, as_map) in enumerate(mapped, 1):
            self.net.get_submodule(path).register_forward_hook(partial(self._note, f"layer{number}", as_map))

    def _note(self, name: str, as_map: Callable[[Tensor], Tensor], module: nn.Module, inputs: Any, out: Tensor) -> None:
        self.found[name] = as_map(out)
        if name == self.last:
            raise _Seen

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        self.last = last
        try:
            self.found["logits"] = self.net(images)
        except _Seen:
            pass
        finally:
            found = dict(self.found)
            self.found.clear()  # or the maps would live as long as the net
            self.last = None
        return found

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["logits"]

    # A model file has torchvision's own names, so that torchvision alone can read it.
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return self.net.load_state_dict(state_dict, *args, **kwargs)


def _torchvision(name: str, classes: int, image_size: int) -> nn.Module:
    """torchvision's classifier of that name, made for this number of classes and size of images."""
    from torchvision import models  # as loading it takes longer than making our own ResNet

    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}  # else training gives three logits, and a warning
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if not name.startswith("vit"):
        return models.get_model(name, **options)
    with torch.device("meta"):  # to learn its size; its patches would be too large for small images
        full = models.get_model(name, **options)
    block = full.encoder.layers[0]
    return models.VisionTransformer(
        image_size=image_size,
        patch_size=patch_size(full.patch_size, image_size),
        num_layers=len(full.encoder.layers),
        num_heads=block.num_heads,
        hidden_dim=full.hidden_dim,
        mlp_dim=full.mlp_dim,
        num_classes=classes,
    )


def patch_size(own: int, image_size: int) -> int:
    """The side of a Vision Transformer's patches, in pixels: its own, or the largest that still cuts an image into
    7×7 patches or more without rest, which is the coarsest grid of torchvision's nets at their 224 pixels."""
    return max(side for side in range(1, own + 1) if image_size % side == 0 and image_size // side >= LEAST_GRID)


def _mapped_modules(net: nn.Module, image_size: int) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """The modules whose outputs are the net's maps, from the finest to the coarsest, by path; and what makes of such an
    output a map (N, channels, height, width)."""
    from torchvision.models import VisionTransformer

    if isinstance(net, VisionTransformer):
        blocks = [f"encoder.layers.{name}" for name, _ in net.encoder.layers.named_children()]
        return [(blocks[len(blocks) * quarter // MAPS - 1], _patches) for quarter in range(1, MAPS + 1)]
    trunk = dict(_steps(net))
    seen: list[tuple[str, Any, int]] = []

    def note(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append((path, output, getattr(output, "_version", 0)))

    handles = [module.register_forward_hook(partial(note, path)) for path, module in trunk.items()]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
        net.train()
    calls = Counter(path for path, _, _ in seen)
    last: dict[int, tuple[str, Callable[[Tensor], Tensor]]] = {}
    learned: set[int] = set()
    for path, output, version in seen:
        if isinstance(trunk[path], HEAD):
            break
        if not isinstance(output, Tensor) or output.dim() != 4 or calls[path] > 1:
            continue
        # Images are square, and so are maps: the two sides that agree are height and width.
        _, first, second, third = output.shape
        as_map: Callable[[Tensor], Tensor] = _channels_first if first == second != third else _as_it_is
        if output._version != version:  # the net goes on to change it in place
            as_map = partial(_copy, as_map)
        last.pop(second, None)
        last[second] = path, as_map
        if any(True for _ in trunk[path].parameters()):
            learned.add(second)
    # A resolution that is only pooled to and left again has no features of its own.
    return [found for side, found in last.items() if side in learned][-MAPS:]


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _copy(as_map: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    return as_map(output).clone()


def _channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _patches(tokens: Tensor) -> Tensor:
    """Tokens (N, 1 + patches, channels), the class token first, as a map of the patches."""
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _steps(module: nn.Module, above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that a net calls one after the other, by path: sequences are taken apart, blocks are not."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _steps(child, f"{above}{name}.")
        else:
            yield above + name, child


def create(network: Network, classes: int, image_size: int) -> Classifier:
    """The classifier that params.yaml describes, with random weights (seed torch before), for images of image_size
    pixels. Raises InputError where it cannot read images of that size."""
    if network.blocks is None or network.width is None:
        return Torchvision(network.name, classes, image_size)
    return ResNet(tuple(network.blocks), network.width, classes)


def map_shapes(net: Classifier, size: int) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) of every feature map for square images of `size` pixels."""
    weight = next(net.parameters())
    probe = torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype)
    training = net.training
    with torch.no_grad():
        maps = net.eval().maps(probe)
    net.train(training)
    return {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in maps.items() if m.dim() == 4}


def frozen(net: Classifier) -> Classifier:
    """A copy for attacks: in eval mode, parameters without gradient, every BatchNorm that follows a convolution folded
    into it."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    if isinstance(net, Torchvision):
        _fold(net.net)
        net.found.clear()  # of what the tracer sent through
    if not isinstance(net, ResNet):
        return net
    net.stem = nn.Sequential(_folded(net.stem[0], net.stem[1]), net.stem[2])
    for module in net.modules():
        if isinstance(module, Block):
            module.conv1, module.norm1 = _folded(module.conv1, module.norm1), nn.Identity()
            module.conv2, module.norm2 = _folded(module.conv2, module.norm2), nn.Identity()
            if len(module.shortcut):
                module.shortcut = nn.Sequential(_folded(module.shortcut[0], module.shortcut[1]))
    return net


def _fold(net: nn.Module) -> None:
    """Fold, in place, each BatchNorm that alone reads a convolution's output; none where the net cannot be traced."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return
    try:
        nodes = list(fx.Tracer().trace(net).nodes)
    except Exception:  # whatever keeps it from being traced: unfolded, it is slower and as correct
        return
    modules = dict(net.named_modules())
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = (modules[name] for name in names)
        fits = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats
        # Whose output is a map keeps its hook, and so its place.
        if fits and not any(calls[name] > 1 or modules[name]._forward_hooks for name in names):
            net.set_submodule(names[0], _folded(conv, norm))
            net.set_submodule(names[1], nn.Identity())


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
    found = noted(path)
    if found is None:
        raise InputError(f"{path} is not a model file of Sparring (no metadata of one); delete it and run `dvc repro`")
    return found


def noted(path: Path) -> dict[str, object] | None:
    """The same, and None for a safetensors file that is not ours."""
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads((file.metadata() or {})[METADATA_KEY]))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; `dvc repro` makes it") from error
    except KeyError:
        return None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is not a model file of Sparring ({error}); delete it and run `dvc repro`") from error


def load_into(module: nn.Module, path: Path) -> None:
    """Fill a module with a file's tensors. Raises InputError where they are those of another architecture, or no
    numbers."""
    facts(path)
    tensors = read(path)
    for name, (found, expected) in misfits(module, tensors).items():
        raise InputError(
            f"{path} holds another architecture than params.yaml describes: {name} is {words(found)}, not "
            f"{words(expected)}; delete it and run `dvc repro`"
        )
    module.load_state_dict(tensors)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. Raises InputError where one of them holds NaN or infinity."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{path} holds {no_number(tensor)} in {name}, as a failed training leaves it; train it again, with a "
                "lower learning rate"
            )
    return tensors


def no_number(tensor: Tensor) -> str:
    """Which of the two a tensor that is not finite holds, for reading."""
    return "NaN" if tensor.isnan().any() else "infinity"


def misfits(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...] | None, ...]]:
    """By name, the shapes (found, expected) of tensors that are not as the module has them; None for an absent one."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = sorted(expected.keys() | found.keys())
    return {name: (found.get(name), expected.get(name)) for name in names if found.get(name) != expected.get(name)}


def load(network: Network, classes: int | Sequence[str], image_size: int, path: Path) -> Classifier:
    """The classifier that params.yaml describes, for images of image_size pixels, with the tensors of a file.

    classes: how many; or the names of the data's, with which those in the file are compared: where they stand in
    another order there, the net's logits are put in the data's. Raises InputError as `load_into` and `class_order` do.
    """
    number = classes if isinstance(classes, int) else len(classes)
    net = create(network, number, image_size)
    load_into(net, path)
    if not isinstance(classes, int):
        order = class_order(path, facts(path).get("classes"), classes, "delete it and run `dvc repro`")
        if order is not None:
            _reorder(net, order)
    return net


def class_order(path: Path, recorded: object, classes: Sequence[str], mend: str) -> list[int] | None:
    """Where a model's file has each of the data's classes; None where that is their own order, or it has no names.

    recorded: what the file at `path` says its classes are.  A line on standard error says that the order is another.
    Raises InputError, which ends in `mend`, where the names are not those of the data.
    """
    if not isinstance(recorded, list):
        return None
    names = [str(name) for name in recorded]
    if len(names) != len(classes):
        raise InputError(f"{path} names {len(names)} classes, the stored images {len(classes)}; {mend}")
    different = [number for number, pair in enumerate(zip(names, classes, strict=True)) if pair[0] != pair[1]]
    if not different:
        return None
    first = different[0]
    says = f"{path} calls class {first} {names[first]}, the stored images call it {classes[first]}"
    if sorted(names) != sorted(classes) or len(set(names)) < len(names):
        raise InputError(f"{says}; {mend}")
    print(f"note: {says}; the logits are put in the order of the stored images' classes", file=sys.stderr)
    return [names.index(name) for name in classes]


def _reorder(net: Classifier, order: list[int]) -> None:
    """Make logit k of a net, in place, what was logit order[k]."""
    tensors = net.state_dict()
    last = list(tensors)[-1].rpartition(".")[0]
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] == last:
            tensor.copy_(tensor[order])


def words(shape: tuple[int, ...] | None) -> str:
    """A tensor's shape, for reading."""
    return "absent" if shape is None else "×".join(map(str, shape)) or "a scalar"


@torch.no_grad()
def predict(net: nn.Module, stored: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Softmax probabilities (N, classes), float32, of images as stored: the original model, in eval mode, true float32.

    Every prediction that is stored or counted comes from here, so that no two of them can disagree.
    """
    net.eval()
    if not len(stored):  # the number of classes is what the net gives one image
        stored = np.resize(np.arange(256, dtype=np.uint8), (1, *stored.shape[1:]))
        return predict(net, stored, 1, device)[:0]
    parts = [
        net(to_images(stored[start : start + batch_size], device)).softmax(1).cpu().numpy()
        for start in range(0, len(stored), batch_size)
    ]
    return np.concatenate(parts)
