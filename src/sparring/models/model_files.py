"""Model files are safetensors, with metadata that tell how to use the model."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sparring.layout import replacing
from sparring.models.classifier import Classifier
from sparring.params.errors import InputError

METADATA_KEY = "sparring"


def digest(net: nn.Module) -> str:
    """Return the hexadecimal SHA-256 of a model's tensors, names and shapes, whatever file or device holds them."""
    sha = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def save_model(module: nn.Module, path: Path, facts: dict[str, object]) -> None:
    """Write the module's tensors as safetensors, with `facts` as JSON in its one metadata key."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {METADATA_KEY: json.dumps(facts, sort_keys=True)}))


def facts(path: Path) -> dict[str, object]:
    """Return the metadata that `save_model` wrote. Raises InputError for a file that is missing or not Sparring's."""
    metadata = facts_or_none(path)
    if metadata is None:
        raise InputError(f"{path} is not a model file of Sparring (no metadata of one); delete it and run `dvc repro`")
    return metadata


def facts_or_none(path: Path) -> dict[str, object] | None:
    """Return the metadata as `facts` does, but None for a safetensors file that is not Sparring's."""
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
    """Fill a module with a file's tensors. Raises InputError where they belong to another architecture, or where one
    holds NaN or infinity."""
    facts(path)
    tensors = read(path)
    for name, (shape, expected) in misfits(module, tensors).items():
        raise InputError(
            f"{path} holds another architecture than params.yaml describes: {name} is {shape_text(shape)}, not "
            f"{shape_text(expected)}; delete it and run `dvc repro`"
        )
    module.load_state_dict(tensors)


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name. Raises InputError where one of them holds NaN or infinity."""
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
    """Return, for messages, whether a tensor that is not finite holds NaN or infinity."""
    return "NaN" if tensor.isnan().any() else "infinity"


def misfits(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...] | None, ...]]:
    """Return, for each tensor whose shape differs from the module's, name → (shape in the file, in the module).

    A tensor that only one of them has is None in the other.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = sorted(expected.keys() | shapes.keys())
    return {name: (shapes.get(name), expected.get(name)) for name in names if shapes.get(name) != expected.get(name)}


def class_order(path: Path, recorded: object, classes: Sequence[str], mend: str) -> list[int] | None:
    """Return the index that each of the data's classes has in a model's file; None where the order is the same, or the
    file names no classes.

    recorded: the classes that the file at `path` names.  Another order is reported by a line on standard error.
    Raises InputError, whose message ends in `mend`, where the names are not those of the data.
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
    conflict = f"{path} calls class {first} {names[first]}, the stored images call it {classes[first]}"
    if sorted(names) != sorted(classes) or len(set(names)) < len(names):
        raise InputError(f"{conflict}; {mend}")
    print(f"note: {conflict}; the logits are put in the order of the stored images' classes", file=sys.stderr)
    return [names.index(name) for name in classes]


def reorder(net: Classifier, order: list[int]) -> None:
    """Permute a net's last layer in place: logit k becomes what logit order[k] was."""
    tensors = net.state_dict()
    last = list(tensors)[-1].rpartition(".")[0]
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] == last:
            tensor.copy_(tensor[order])


def shape_text(shape: tuple[int, ...] | None) -> str:
    """Return a tensor's shape as text for messages."""
    return "absent" if shape is None else "×".join(map(str, shape)) or "a scalar"
