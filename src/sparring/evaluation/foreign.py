"""Model files from elsewhere, read for evaluation. Nothing is unpickled, and no file can run code of its own."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sparring import store
from sparring.attacks import engine
from sparring.device import channels_last, rng
from sparring.evaluation import predict, programs
from sparring.models import classifier, model_files, networks
from sparring.params.errors import InputError, reason
from sparring.params.sections import Network

PROGRAM = ".pt2"
TENSORS = ".safetensors"
# What DataParallel, DistributedDataParallel and torch.compile put before the name of every tensor.
PREFIXES = ("module.", "_orig_mod.")
PROBE = 8  # stored images that a model is tried on, and as many of noise
TRIED = 200  # images on which usual normalisations are tried
GAIN = 0.1  # of accuracy: where a usual normalisation gains so much, it was forgotten

Scaling = tuple[list[float], list[float]]  # mean and standard deviation, of each channel or of all
# The normalisations that published models usually need.
USUAL_SCALINGS: dict[str, Scaling] = {
    "ImageNet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "CIFAR-10": ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
    "CIFAR-100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "MNIST": ([0.1307], [0.3081]),
    "the range from -1 to 1": ([0.5], [0.5]),
}


def scaling(mean: str | None, std: str | None) -> Scaling | None:
    """Parse the options --mean and --std, of one or three numbers each; None where neither is given.

    Raises InputError for one without the other, for anything but such numbers, and for a std that is not above 0.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        present, absent, neutral = ("--std", "--mean", 0) if mean is None else ("--mean", "--std", 1)
        raise InputError(f"{present} is given without {absent}; give both ({absent} {neutral} leaves the images alone)")
    numbers = _numbers("--mean", mean), _numbers("--std", std)
    if min(numbers[1]) <= 0:
        raise InputError(f"--std is {std}; give numbers above 0, by which the images are divided")
    return numbers


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} is {text}; give three numbers, as in 0.5,0.4,0.3, or one for all channels")
    return numbers


class Model(nn.Module):
    """A model from elsewhere, from images (N, 3, H, W) in [0, 1] to logits (N, classes), float32.

    classes: the number of classes that it must distinguish; None for any number.
    order: the model's index of each of the data's classes; None where both have the same order.
    Raises InputError where the model cannot read the images, or does not give a finite number for each class.
    """

    def __init__(
        self, net: nn.Module, path: Path, classes: int | None, scaling: Scaling | None, device: torch.device
    ) -> None:
        super().__init__()
        self.boxed_net = [net]  # in a list, so that it is no submodule: a program refuses to be set to eval mode
        self.path = path
        self.classes: int | None = classes
        self.scaling = [torch.tensor(numbers, device=device).view(-1, 1, 1) for numbers in scaling or ()]
        self.order: list[int] | None = None

    def forward(self, images: Tensor) -> Tensor:
        count, size = len(images), images.shape[-1]
        if self.scaling:
            images = (images - self.scaling[0]) / self.scaling[1]
        try:
            logits = self.boxed_net[0](images)
        except Exception as error:  # whatever a program raises
            if engine.is_out_of_memory(error):
                raise
            raise InputError(
                f"{self.path} cannot read {count} images of 3×{size}×{size} at a time ({reason(error)}); "
                "export it for that size, with a dynamic batch"
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
            raise InputError(f"{self.path} does not give one row of logits for each image")
        if self.classes is not None and self.classes != logits.shape[1]:
            raise _other_classes(self.path, logits.shape[1], "the stored images", self.classes)
        logits = logits.float()
        if not logits.isfinite().all():
            raise InputError(
                f"{self.path} gives {model_files.no_number(logits)} for an image in [0, 1]; a model to be measured has "
                "to give a number for each class"
            )
        return logits if self.order is None else logits[:, self.order]

    @torch.no_grad()
    def quick(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) without gradient."""
        logits: Tensor = self(images)
        return logits


@torch.no_grad()
def check_fixed_function(model: Model, path: Path, stored: np.ndarray, device: torch.device) -> None:
    """Raise InputError unless an image's logits are the same every time, and whatever other images are in the batch.

    stored: (N, H, W, 3) clean images, of which the first PROBE are tried; N may be 0.
    """
    noise = rng(0, "evaluate-model", "noise").integers(0, 256, (PROBE, *stored.shape[1:]), np.uint8)
    images = torch.cat([classifier.to_images(part, device) for part in (noise, stored[:PROBE])])
    for count in (2, 3):
        model(images[:count])
    logits = model(images)
    # Sums in another order differ in their last digits, more so through a whole net: half of the digits have to agree.
    bound = math.sqrt(_coarsest_eps(model.boxed_net[0])) * float(logits.abs().max())
    repeats = [("when it is asked again", "dropout is", len(images))]
    repeats += [("beside other images", "statistics of the batch are", count) for count in (2, 1)]
    for when, what, count in repeats:
        gap = float((torch.cat([model(part) for part in images.split(count)]) - logits).abs().max())
        if gap > bound:
            raise InputError(
                f"{path} gives an image other logits {when} (by up to {gap:.2g}; rounding explains {bound:.1g}): "
                f"{what} left on; set the model to eval mode before it is exported"
            )


def forgotten_scaling(
    net: nn.Module, path: Path, classes: int, images: store.Images, batch_size: int, device: torch.device
) -> str | None:
    """Return a sentence where one of USUAL_SCALINGS makes a net far more accurate than images in [0, 1] do, else None.

    images: clean ones, of which TRIED are tried, evenly from all.
    """
    images = images[:: max(1, len(images) // TRIED)][:TRIED]

    def accuracy(scaling: Scaling | None) -> float:
        try:
            rows = predict.classified(Model(net, path, classes, scaling, device), images, batch_size, device)
        except InputError:
            if scaling is None:
                raise
            return 0.0  # a model that gives no number for such images does not want them
        return float((rows["prediction"] == rows["label"]).mean())

    plain = accuracy(None)
    by_name = {name: accuracy(scaling) for name, scaling in USUAL_SCALINGS.items()}
    best = max(by_name, key=lambda name: by_name[name])
    if by_name[best] < plain + GAIN:
        return None
    mean, std = (",".join(f"{number:g}" for number in numbers) for numbers in USUAL_SCALINGS[best])
    return (
        f"{path} gets {plain:.3f} of {len(images)} images in [0, 1] right, and {by_name[best]:.3f} where they are "
        f"normalised as for {best}; add --mean {mean} --std {std}, or --mean 0 --std 1 to leave them so"
    )


def guessing_sentence(path: Path, clean: pd.DataFrame, guessed: float, more_images: str = "") -> str:
    """Return the sentence on a model that is not shown to be more accurate on clean images than guessing.

    clean: its predictions, with `correct`.  guessed: from `statistics.as_if_guessed`.
    more_images: what to do about too few images, with "or" at the end.
    """
    accuracy = clean["correct"].mean()
    comparison, mend = f"no more than guessing does ({guessed:.3f})", ""
    if accuracy > guessed:
        comparison, mend = f"which so few images cannot tell from guessing ({guessed:.3f})", more_images
    return (
        f"{path} gets {accuracy:.3f} of {len(clean):,} clean images right, {comparison}; {mend}check its normalisation "
        "(--mean, --std), the order of its classes and its image size"
    )


def _coarsest_eps(net: nn.Module) -> float:
    """Return the machine epsilon of the coarsest floating-point format that a net or program computes in."""
    values = [*net.state_dict().values()]
    if isinstance(net, torch.fx.GraphModule):
        values += [node.meta.get("val") for node in net.graph.nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}
    return max(torch.finfo(dtype).eps for dtype in dtypes | {torch.float32})


def _other_classes(path: Path, count: int, images: str, classes: int) -> InputError:
    return InputError(
        f"{path} tells {count} classes apart; {images} have {classes}; use images of the classes that it learnt"
    )


def read(
    path: Path,
    network: Network | None,
    classes: int,
    size: int,
    device: torch.device,
    images: str = "the stored images",
) -> tuple[nn.Module, object]:
    """Load a file's model, on the device and in eval mode, and the names of its classes as the file has them, or None.

    classes, size: those of the images.  images: what these are, for an error.
    Raises InputError where the file cannot be read, or its model is not for so many classes or images of this size.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; name a {TENSORS} or a {PROGRAM} file")
    if path.suffix == PROGRAM:
        if network is not None:
            raise InputError(f"{path} is a program, which has its architecture in it; leave out --network")
        return programs.read(path, device), programs.facts(path).get("classes")
    if path.suffix != TENSORS:
        raise InputError(
            f"{path} is neither {TENSORS} nor {PROGRAM}; a pickle can run any code when it is read, so convert it "
            "where you trust it, as docs/audit.md shows: safetensors.torch.save_file(net.state_dict(), "
            f'"{path.stem}{TENSORS}")'
        )
    facts = read_facts(path)
    if network is None:
        if facts is None:
            raise InputError(f"{path} does not say its architecture; name it, as in --network vgg11_bn")
        network = network_of(facts, path)
    trained, names = (facts or {}).get("image_size"), (facts or {}).get("classes")
    if isinstance(names, list) and len(names) != classes:
        raise _other_classes(path, len(names), images, classes)
    if isinstance(trained, int) and trained != size:
        raise InputError(f"{path} is for images of {trained} pixels, not of {size}")
    net = networks.create(network, classes, size)
    load_tensors(net, path, classes, size, images)
    return channels_last(net.eval(), device), names


def read_facts(path: Path) -> dict[str, object] | None:
    """Read the facts on a model that Sparring wrote into its safetensors file; None for a file from elsewhere.

    Raises InputError where it is no safetensors file.
    """
    try:
        return model_files.facts_or_none(path)
    except InputError as error:
        raise InputError(f"{path} is not a safetensors file ({reason(error.__cause__ or error)})") from error


def network_of(facts: dict[str, object], path: Path) -> Network:
    """Return the architecture that the facts of a model file name. Raises InputError where they name none."""
    try:
        return Network.model_validate(facts["network"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} does not say its architecture; name it, as in --network vgg11_bn") from error


def load_tensors(net: nn.Module, path: Path, classes: int, size: int, images: str = "the stored images") -> None:
    """Load the file's tensors into the net, which has so many classes. Raises InputError where they do not fit."""
    tensors = _without_prefixes(model_files.read(path))
    # How many batches BatchNorm has averaged over, which older files leave out and evaluation does not read.
    counters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith("num_batches_tracked")}
    tensors = counters | tensors
    wrong = model_files.misfits(net, tensors)
    if not wrong:
        net.load_state_dict(tensors)
        return
    shapes = wrong.values()
    last_layer = [(actual, wanted) for actual, wanted in shapes if actual and wanted and actual[1:] == wanted[1:]]
    if len(last_layer) == len(wrong) and all(wanted[0] == classes for _, wanted in last_layer):
        raise _other_classes(path, last_layer[0][0][0], images, classes)
    name, (actual, wanted) = next(iter(wrong.items()))
    raise InputError(
        f"{path} holds another architecture (of images of {size} pixels and {classes} classes): {name} is "
        f"{model_files.shape_text(actual)}, not {model_files.shape_text(wanted)}; name its own with --network"
    )


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their names in the net itself, without the prefixes that wrappers give them."""
    for prefix in PREFIXES * 2:  # in either order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
