"""Wraps any classifier of torchvision so that it returns its feature maps."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparring.models.classifier import Classifier
from sparring.models.convolution import spare_onednn
from sparring.params.errors import InputError

MAPS = 4
# A classifier of torchvision has no feature maps from the first of these modules on.
HEAD = (nn.AdaptiveAvgPool2d, nn.Dropout)
# The coarsest grid of patches that torchvision's own Vision Transformers have.
LEAST_GRID = 7


class _LastMapReached(Exception):
    """This exception ends a pass once the last requested map is computed."""


class Torchvision(Classifier):
    """Wraps any classifier of torchvision, with random weights, for images of one size.

    Its maps are found by their resolution. At each resolution the last map counts, and of these the four coarsest are
    taken; small images may give fewer. A Vision Transformer, whose tokens all have one resolution, gives the patch
    tokens after each quarter of its blocks. The maps of a whole pass include the logits.
    """

    def __init__(self, name: str, classes: int, image_size: int) -> None:
        """Create the net. Raises InputError where it cannot read images of this size, in pixels."""
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
        self.outputs: dict[str, Tensor] = {}
        self.last: str | None = None
        for number, (path, as_map) in enumerate(mapped, 1):
            self.net.get_submodule(path).register_forward_hook(partial(self._store_output, f"layer{number}", as_map))

    def _store_output(
        self, name: str, as_map: Callable[[Tensor], Tensor], module: nn.Module, inputs: Any, out: Tensor
    ) -> None:
        self.outputs[name] = as_map(out)
        if name == self.last:
            raise _LastMapReached

    def maps(self, images: Tensor, last: str | None = None) -> dict[str, Tensor]:
        self.last = last
        try:
            self.outputs["logits"] = self.net(images)
        except _LastMapReached:
            pass
        finally:
            maps = dict(self.outputs)
            self.outputs.clear()  # or the maps would live as long as the net
            self.last = None
        return maps

    def classify(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["logits"]

    # A model file has torchvision's own names, so that torchvision alone can read it.
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return self.net.load_state_dict(state_dict, *args, **kwargs)


def _torchvision(name: str, classes: int, image_size: int) -> nn.Module:
    """Create torchvision's classifier of that name for this number of classes and size of images."""
    from torchvision import models  # here, as loading it takes longer than creating our own ResNet

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
    """Return the side of a Vision Transformer's patches, in pixels: its own, or the largest that divides an image into
    at least 7×7 whole patches, which is the coarsest grid of torchvision's nets at their 224 pixels."""
    return max(side for side in range(1, own + 1) if image_size % side == 0 and image_size // side >= LEAST_GRID)


def _mapped_modules(net: nn.Module, image_size: int) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Return the paths of the modules whose outputs are the net's maps, from the finest to the coarsest, each with a
    function that turns the output into a map (N, channels, height, width)."""
    from torchvision.models import VisionTransformer

    if isinstance(net, VisionTransformer):
        blocks = [f"encoder.layers.{name}" for name, _ in net.encoder.layers.named_children()]
        return [(blocks[len(blocks) * quarter // MAPS - 1], _patches) for quarter in range(1, MAPS + 1)]
    trunk = dict(_steps(net))
    outputs: list[tuple[str, Any, int]] = []

    def note_output(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append((path, output, getattr(output, "_version", 0)))

    handles = [module.register_forward_hook(partial(note_output, path)) for path, module in trunk.items()]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
        net.train()
    calls = Counter(path for path, _, _ in outputs)
    last: dict[int, tuple[str, Callable[[Tensor], Tensor]]] = {}
    learned: set[int] = set()
    for path, output, version in outputs:
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
    # A resolution at which the net has no parameters, only pooling, has no features of its own.
    return [module_and_map for side, module_and_map in last.items() if side in learned][-MAPS:]


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _copy(as_map: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    return as_map(output).clone()


def _channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _patches(tokens: Tensor) -> Tensor:
    """Turn tokens (N, 1 + patches, channels), the class token first, into a map of the patches."""
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _steps(module: nn.Module, above: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a net calls one after the other, with their paths. It splits sequences, but not blocks."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _steps(child, f"{above}{name}.")
        else:
            yield above + name, child
