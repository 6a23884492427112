"""Model files: safetensors, with what one needs to know to use the model."""

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


def reorder(net: Classifier, order: list[int]) -> None:
    """Make logit k of a net, in place, what was logit order[k]."""
    tensors = net.state_dict()
    last = list(tensors)[-1].rpartition(".")[0]
    for name, tensor in tensors.items():
        if name.rpartition(".")[0] == last:
            tensor.copy_(tensor[order])


def words(shape: tuple[int, ...] | None) -> str:
    """A tensor's shape, for reading."""
    return "absent" if shape is None else "×".join(map(str, shape)) or "a scalar"
