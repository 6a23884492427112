"""The model of an audit: opened, checked to be a fixed function of its images, and made ready for attacks."""

import hashlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparring import store
from sparring.attacks import engine, losses
from sparring.device import channels_last, on_device
from sparring.evaluation import foreign, programs
from sparring.models import classifier, model_files
from sparring.models.adapted import Adapted
from sparring.models.classifier import Classifier
from sparring.params.errors import InputError, reason
from sparring.params.sections import Network

PYTHON = "python:"
PROBE = 8  # images on which it is seen whether there are gradients


@dataclass(frozen=True)
class ModelSource:
    """A model's file or function, and what it says of the model, before the model is loaded.

    text: as on the command line.  classes: the names of its classes, or None.  size: the side of its images in pixels,
    or None.  from_sparring: whether the file has facts that Sparring wrote.
    """

    text: str
    network: Network | None
    classes: list[str] | None
    size: int | None
    from_sparring: bool

    @property
    def path(self) -> Path:
        return Path(self.text)


@dataclass(frozen=True)
class Subject:
    """The model under audit.

    model: from images (N, 3, H, W) in [0, 1] to logits (N, classes).  aim: the same in the form that attacks query.
    has_gradients: whether an attacker can follow any.  digest: of its file or weights, hexadecimal.
    """

    model: foreign.Model
    aim: engine.Aim
    has_gradients: bool
    digest: str


def open_model(text: str, network: Network | None) -> ModelSource:
    """Read what a model's file says of the model. Raises InputError where there is no such file."""
    if text.startswith(PYTHON):
        if network is not None:
            raise InputError(f"{text} has its architecture in its code; leave out --network")
        return ModelSource(text, None, None, None, False)
    path = Path(text)
    if not path.is_file():
        raise InputError(
            f"{path} is missing; name a {foreign.TENSORS} or {foreign.PROGRAM} file, or {PYTHON}MODULE:FUNCTION"
        )
    facts: dict[str, object] | None = None
    if path.suffix == foreign.PROGRAM:
        facts = programs.facts(path)
    elif path.suffix == foreign.TENSORS:
        facts = foreign.read_facts(path)
    facts = facts or {}
    if "mean_colour" in facts:
        print(
            f"warning: {path} was trained through a random transform, without which it is audited; the pipeline's "
            "whitebox@<structure> attacks it through the transform",
            file=sys.stderr,
        )
    names, size = facts.get("classes"), facts.get("image_size")
    classes = [str(name) for name in names] if isinstance(names, list) else None
    return ModelSource(text, network, classes, size if isinstance(size, int) else None, bool(facts))


def load(source: ModelSource, classes: int, size: int, device: torch.device) -> tuple[nn.Module, int]:
    """Load the module, on the device and in eval mode. Returns it with its number of classes.

    classes: the number for a net whose file does not name its classes.
    Raises InputError where the model cannot be loaded, or cannot read images of this size.
    """
    if source.text.startswith(PYTHON):
        net = _imported(source.text).to(device).eval()
        net.requires_grad_(False)  # attacks want the gradient by the images alone
    else:
        class_count = len(source.classes) if source.classes else classes
        net, _ = foreign.read(source.path, source.network, class_count, size, device, "the images in --data")
        if isinstance(net, Classifier):
            return net, class_count
    blank = torch.zeros(2, 3, size, size, device=device)
    return net, foreign.Model(net, source.path, None, None, device).quick(blank).shape[1]


def _imported(text: str) -> nn.Module:
    """Return the module that python:MODULE:FUNCTION makes. This runs the user's code, found from the current folder.

    Raises InputError where that fails or makes no module.
    """
    module, colon, name = text.removeprefix(PYTHON).partition(":")
    if not (module and colon and name):
        raise InputError(f"{text} is not {PYTHON}MODULE:FUNCTION, as in {PYTHON}my_models:resnet")
    sys.path.insert(0, str(Path.cwd()))
    try:
        net = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{text} failed ({type(error).__name__}: {reason(error)})") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{text} gives a {type(net).__name__}; it should give a torch.nn.Module")
    return net


def subject(
    source: ModelSource,
    net: nn.Module,
    names: list[str],
    images: store.Images,
    scaling: foreign.Scaling | None,
    batch_size: int,
    device: torch.device,
) -> Subject:
    """Check a loaded model and make it ready for attacks.

    names: those of the images' classes.  Raises InputError where the model is no fixed function of an image, does not
    give a finite number for each class, or plainly needs images that are normalised.
    """
    model = foreign.Model(net, source.path, len(names), scaling, device)
    foreign.check_fixed_function(model, source.path, images.image, device)
    numbered = [str(number) for number in range(len(names))]
    if numbered not in (source.classes, names):  # where either has no names, the order cannot be compared
        remedy = "audit it with images of its own classes"
        model.order = model_files.class_order(source.path, source.classes, names, remedy)
    if not source.from_sparring and scaling is None:
        problem = foreign.forgotten_scaling(net, source.path, len(names), images, batch_size, device)
        if problem is not None:
            raise InputError(problem)
    aim: engine.Aim = model
    if isinstance(net, Classifier):
        adapted = Adapted(net, scaling, model.order) if scaling or model.order else net
        aim = engine.Fast(channels_last(adapted, device), device, torch.float32)
    return Subject(model, aim, has_gradients(aim, images[:PROBE], device), _digest(source, net))


def has_gradients(aim: engine.Aim, images: store.Images, device: torch.device) -> bool:
    """Tell whether the loss has usable gradients: finite on all images, and not zero on at least one."""
    pixels, labels = classifier.to_images(images.image, device), on_device(images.label, device)
    try:
        gradient = losses.loss_gradient(aim, pixels, labels)
    except Exception as error:  # what is not differentiable raises one of many
        if isinstance(error, InputError) or engine.is_out_of_memory(error):
            raise
        return False
    return bool(gradient.isfinite().all() and gradient.abs().amax() > 0)


def _digest(source: ModelSource, net: nn.Module) -> str:
    if source.text.startswith(PYTHON):
        return model_files.digest(net)
    with source.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def largest_batch(model: nn.Module, size: int, device: torch.device) -> int:
    """Return the number of images in an attack's batch: on a CPU as many as suit its caches, on a GPU as many as fit
    half of the free memory."""
    if device.type != "cuda":
        return int(np.clip(2 ** np.floor(np.log2(2**16 / size**2)), 4, 64))
    batch = 8
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    probe = torch.zeros(batch, 3, size, size, device=device, requires_grad=True)
    torch.autograd.grad(model(probe).sum(), probe)
    bytes_per_image = (torch.cuda.max_memory_allocated(device) - before) / batch
    free = torch.cuda.mem_get_info(device)[0]
    return int(np.clip(2 ** np.floor(np.log2(0.5 * free / bytes_per_image)), 8, 512))
