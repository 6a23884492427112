"""Creates and loads the classifier that params.yaml describes, and prepares copies for attacks."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sparring.models import facenet, signs_and_faces
from sparring.models.adapted import Adapted
from sparring.models.averaged import Averaged
from sparring.models.classifier import Classifier
from sparring.models.model_files import class_order, facts, load_into, reorder
from sparring.models.resnet import Block, ResNet
from sparring.models.signs_and_faces import Staged
from sparring.models.torchvision import Torchvision
from sparring.params.sections import Network


def create(network: Network, classes: int, image_size: int) -> Classifier:
    """Create the classifier of a section `network` for images of image_size × image_size pixels.

    Its weights are random: seed torch before. Raises InputError where it cannot read images of that size.
    """
    dropout = network.dropout or 0.0
    if network.name == "facenet":
        return facenet.create(classes, network.width_factor or 1.0, dropout)
    if network.name in signs_and_faces.NETWORKS:
        return signs_and_faces.create(network.name, classes, image_size, dropout)
    if network.blocks is None or network.width is None:
        return Torchvision(network.name, classes, image_size)
    return ResNet(tuple(network.blocks), network.width, classes)


def frozen(net: Classifier) -> Classifier:
    """Return a copy for attacks: it is in eval mode, its parameters have no gradient, and every BatchNorm that follows
    a convolution is folded into it."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    if isinstance(net, Averaged | Adapted):
        net.net = frozen(net.net)
    if isinstance(net, Torchvision):
        _fold(net.net)
        net.outputs.clear()  # the hooks kept the tracer's stand-ins for tensors
    if isinstance(net, Staged):
        _fold(net)
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
    """Fold, in place, each BatchNorm that alone reads a convolution's output. Change no net that cannot be traced."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        return
    try:
        nodes = list(fx.Tracer().trace(net).nodes)
    except Exception:  # a net may fail to be traced in any way; unfolded, it is slower and as correct
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
        # A module whose output is a feature map keeps its hook, so it is not replaced.
        if fits and not any(calls[name] > 1 or modules[name]._forward_hooks for name in names):
            net.set_submodule(names[0], _folded(conv, norm))
            net.set_submodule(names[1], nn.Identity())


def _folded(conv: Any, norm: Any) -> nn.Conv2d:
    return fuse_conv_bn_eval(conv, norm).requires_grad_(False)


def load(network: Network, classes: int | Sequence[str], image_size: int, path: Path) -> Classifier:
    """Load the classifier of a section `network`, for images of image_size × image_size pixels, from a file of tensors.

    classes: their number, or the names of the data's classes. Names are compared with those in the file; where their
    order differs, the net's logits are put in the data's. Raises InputError as `load_into` and `class_order` do.
    """
    number = classes if isinstance(classes, int) else len(classes)
    net = create(network, number, image_size)
    load_into(net, path)
    if not isinstance(classes, int):
        order = class_order(path, facts(path).get("classes"), classes, "delete it and run `dvc repro`")
        if order is not None:
            reorder(net, order)
    return net
