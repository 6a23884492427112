"""The model of an audit: opened, checked to be a fixed function of its images, and made ready for attacks."""

import hashlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from sparring import statistics, store
from sparring.attacks import engine, losses
from sparring.device import channels_last, on_device
from sparring.evaluation import foreign, predict, programs
from sparring.models import classifier, model_files
from sparring.models.adapted import Adapted
from sparring.models.classifier import Classifier
from sparring.params.errors import InputError, reason
from sparring.params.sections import Network

PYTHON = "python:"
PROBE = 8  # images on which it is seen whether there are gradients
TRIED = 200  # images on which usual normalisations are tried
MUCH = 0.1  # of accuracy: a normalisation that gains so much was forgotten
# What models in the wild want their images normalised by.
USUAL: dict[str, foreign.Scaling] = {
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "CIFAR-10": ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
    "CIFAR-100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "MNIST": ([0.1307], [0.3081]),
    "the range from -1 to 1": ([0.5], [0.5]),
}


@dataclass(frozen=True)
class Opened:
    """A model file before it is known which images it meets.

    classes: the names of its classes, or None.  size: the side of its images in pixels, or None.
    ours: whether a pipeline of Sparring made it.
    """

    text: str
    network: Network | None
    classes: list[str] | None
    size: int | None
    ours: bool

    @property
    def path(self) -> Path:
        return Path(self.text)


@dataclass(frozen=True)
class Subject:
    """The model under audit.

    model: decides; images (N, 3, H, W) in [0, 1] → logits (N, classes).  aim: what attacks ask instead.
    gradients: whether it has any.  digest: hexadecimal, of its weights.
    """

    model: foreign.Model
    aim: engine.Aim
    gradients: bool
    digest: str


def open_model(text: str, network: Network | None) -> Opened:
    """What a model's file says of itself. Raises InputError where there is no such file."""
    if text.startswith(PYTHON):
        if network is not None:
            raise InputError(f"{text} has its architecture in its code; leave out --network")
        return Opened(text, None, None, None, False)
    path = Path(text)
    if not path.is_file():
        raise InputError(
            f"{path} is missing; name a {foreign.TENSORS} or {foreign.PROGRAM} file, or {PYTHON}MODULE:FUNCTION"
        )
    noted: dict[str, object] | None = None
    if path.suffix == foreign.PROGRAM:
        noted = programs.facts(path)
    elif path.suffix == foreign.TENSORS:
        noted = foreign.noted(path)
    noted = noted or {}
    if "mean_colour" in noted:
        print(
            f"warning: {path} was trained through a random transform, without which it is audited; the pipeline's "
            "whitebox@<structure> attacks it through the transform",
            file=sys.stderr,
        )
    names, size = noted.get("classes"), noted.get("image_size")
    classes = [str(name) for name in names] if isinstance(names, list) else None
    return Opened(text, network, classes, size if isinstance(size, int) else None, bool(noted))


def load(opened: Opened, classes: int, size: int, device: torch.device) -> tuple[nn.Module, int]:
    """The module, on the device and in eval mode, and how many classes it tells apart.

    classes: of the images, as many as the net of a `--network` is made for.
    Raises InputError where it cannot be read, or cannot read such images.
    """
    if opened.text.startswith(PYTHON):
        net = _imported(opened.text).to(device).eval()
        net.requires_grad_(False)  # attacks want the gradient by the images alone
    else:
        wanted = len(opened.classes) if opened.classes else classes
        net, _ = foreign.read(opened.path, opened.network, wanted, size, device)
        if isinstance(net, Classifier):
            return net, wanted
    blank = torch.zeros(2, 3, size, size, device=device)
    return net, foreign.Model(net, opened.path, None, None, device).quick(blank).shape[1]


def _imported(text: str) -> nn.Module:
    """What python:MODULE:FUNCTION gives: it runs the user's own code, found from the folder that one stands in."""
    module, colon, name = text.removeprefix(PYTHON).partition(":")
    if not (module and colon and name):
        raise InputError(f"{text} is not {PYTHON}MODULE:FUNCTION, as in {PYTHON}my_models:resnet")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{text} failed ({type(error).__name__}: {reason(error)})") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{text} gives a {type(made).__name__}; it should give a torch.nn.Module")
    return made


def subject(
    opened: Opened,
    net: nn.Module,
    names: list[str],
    images: store.Images,
    scaling: foreign.Scaling | None,
    batch_size: int,
    device: torch.device,
) -> Subject:
    """The model ready for the audit.

    names: of the images' classes.  Raises InputError where the model is no fixed function that gives a number for each
    class, or plainly wants the images normalised.
    """
    model = foreign.Model(net, opened.path, len(names), scaling, device)
    foreign.check(model, opened.path, images.image, device)
    numbered = [str(number) for number in range(len(names))]
    if numbered not in (opened.classes, names):  # where either has no names, nothing tells of another order
        mend = "audit it with images of its own classes"
        model.order = model_files.class_order(opened.path, opened.classes, names, mend)
    if not opened.ours and scaling is None:
        _check_normalised(opened, net, len(names), images[:TRIED], batch_size, device)
    aim: engine.Aim = model
    if isinstance(net, Classifier):
        adapted = Adapted(net, scaling, model.order) if scaling or model.order else net
        aim = engine.Fast(channels_last(adapted, device), device, torch.float32)
    return Subject(model, aim, has_gradients(aim, images[:PROBE], device), _digest(opened, net))


def _check_normalised(
    opened: Opened, net: nn.Module, classes: int, images: store.Images, batch_size: int, device: torch.device
) -> None:
    """Raise InputError where one of USUAL makes the model right far more often than images in [0, 1] do."""

    def right(scaling: foreign.Scaling | None) -> float:
        model = foreign.Model(net, opened.path, classes, scaling, device)
        rows = predict.classified(model, images, batch_size, device)
        return float((rows["prediction"] == rows["label"]).mean())

    plain = right(None)
    by_name = {name: right(scaling) for name, scaling in USUAL.items()}
    best = max(by_name, key=lambda name: by_name[name])
    if by_name[best] >= plain + MUCH:
        mean, std = (",".join(f"{number:g}" for number in numbers) for numbers in USUAL[best])
        raise InputError(
            f"{opened.text} gets {plain:.3f} of {len(images)} images in [0, 1] right, and {by_name[best]:.3f} where "
            f"they are normalised as for {best}; add --mean {mean} --std {std}, or --mean 0 --std 1 to leave them so"
        )


def check_better_than_guessing(text: str, clean: pd.DataFrame) -> None:
    """Raise InputError where a model gets no more of the clean images right than guessing does.

    text: its name.  clean: its predictions, with `correct`.
    """
    if (guessed := statistics.as_if_guessed(clean)) is not None:
        raise InputError(
            f"{text} gets {clean['correct'].mean():.3f} of {len(clean):,} clean images right, no more than guessing "
            f"does ({guessed:.3f}); check its normalisation (--mean, --std), the order of its classes and its image "
            "size"
        )


def has_gradients(aim: engine.Aim, images: store.Images, device: torch.device) -> bool:
    """Whether the logits tell an attacker where to go: some image has a gradient that is a number and not zero."""
    pixels, labels = classifier.to_images(images.image, device), on_device(images.label, device)
    try:
        gradient = losses.loss_gradient(aim, pixels, labels)
    except Exception as error:  # what is not differentiable raises one of many
        if isinstance(error, InputError) or engine.is_out_of_memory(error):
            raise
        return False
    return bool(gradient.isfinite().all() and gradient.abs().amax() > 0)


def _digest(opened: Opened, net: nn.Module) -> str:
    if opened.text.startswith(PYTHON):
        return model_files.digest(net)
    with opened.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def largest_batch(model: nn.Module, size: int, device: torch.device) -> int:
    """How many images an attack takes at a time: on a CPU as many as its caches like, on a GPU what memory allows."""
    if device.type != "cuda":
        return int(np.clip(2 ** np.floor(np.log2(2**16 / size**2)), 4, 64))
    batch = 8
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    probe = torch.zeros(batch, 3, size, size, device=device, requires_grad=True)
    torch.autograd.grad(model(probe).sum(), probe)
    each = (torch.cuda.max_memory_allocated(device) - before) / batch
    free = torch.cuda.mem_get_info(device)[0]
    return int(np.clip(2 ** np.floor(np.log2(0.5 * free / each)), 8, 512))
