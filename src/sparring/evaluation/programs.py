"""Programs of torch.export, read so that no file can run code of its own."""

import io
import json
import re
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn
from torch._ops import OpOverload

from sparring.params.errors import InputError, reason

FACTS = "sparring.json"  # the extra file of a program that has the model's facts
# The parts of an archive of torch.export that a copy keeps, by the only names that they may have.
PARTS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|\w+\.json)|data/constants/(tensor_\d+|\w+\.json)"
)
PLAIN = re.compile(r"[\w.]*")
SIZES = re.compile(r"(Symbol\('\w+'|[A-Z][A-Za-z]*\(|[a-z]+\d+|, \w+=True|[\d\s,()+*/-])*")
OPERATORS = {"getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le"}
OPERATORS |= {"gt", "ge"}
# The trees of arguments and results of a program that takes one tensor and gives one, as torch.export writes them.
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
INPUT = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]}
KEYWORDS = {"type": "builtins.dict", "context": "[]", "children_spec": []}
ONE_IN = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [INPUT, KEYWORDS]}])
ONE_OUT = json.dumps([1, LEAF])


def facts(path: Path) -> dict[str, object]:
    """Read the facts on the model that `exchange.export` wrote into a program; empty for one from elsewhere."""
    try:
        with ZipFile(path) as archive:
            for name in archive.namelist():
                if name.partition("/")[2] == f"extra/{FACTS}":
                    return dict(json.loads(archive.read(name)))
    except (BadZipFile, ValueError, TypeError) as error:
        raise InputError(f"{path}: its {FACTS} cannot be read ({reason(error)}); export it again") from error
    return {}


def read(path: Path, device: torch.device) -> nn.Module:
    """Load a program of torch.export on the device; torch refuses to set it to eval or training mode.

    Raises InputError where the file holds no such program, or one with more than operations on tensors.
    """
    from torch.export.passes import move_to_device_pass

    try:
        program = torch.export.load(_sanitised(path))
        return move_to_device_pass(program, device).module(check_guards=False)
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes torch raise
        raise InputError(f"{path} cannot be read as a program of torch.export ({reason(error)})") from error


def _sanitised(path: Path) -> io.BytesIO:
    """Copy an archive of torch.export into memory, with its graph and its plain tensors alone.

    torch.export.load by itself unpickles example inputs, some tensors and objects, loads compiled libraries, imports
    what trees of arguments name, and evaluates sizes and guards as Python. The copy has no such part. Its graph is
    checked to have plain names and operations on tensors only. Raises InputError where it has others.
    """
    copy = io.BytesIO()
    try:
        with ZipFile(path) as old, ZipFile(copy, "w") as new:
            for name in dict.fromkeys(old.namelist()):
                part = name.partition("/")[2]
                if not PARTS.fullmatch(part):
                    continue
                content = b"" if part.startswith("data/sample_inputs/") else old.read(name)
                if part == "models/model.json":
                    content = json.dumps(_checked_graph(json.loads(content), path)).encode()
                elif part.endswith(".json"):
                    _check_payload(json.loads(content), path)
                new.writestr(f"model/{part}", content)
    except (BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a program of torch.export ({reason(error)})") from error
    copy.seek(0)
    return copy


def _check_payload(payload: dict[str, Any], path: Path) -> None:
    for name, entry in payload["config"].items():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            _refuse(path, f"{name} is pickled")


def _checked_graph(program: dict[str, Any], path: Path) -> dict[str, Any]:
    module = program["graph_module"]
    (signature,) = (entry["signature"] for entry in module["module_call_graph"] if entry["fqn"] == "")
    if [json.loads(signature[key]) for key in ("in_spec", "out_spec")] != [json.loads(ONE_IN), json.loads(ONE_OUT)]:
        raise InputError(f"{path} does not take one tensor of images and give one of logits")
    signature |= {"in_spec": "", "out_spec": ""}
    # The modules that the nodes came from are not needed.
    module["module_call_graph"] = [{"fqn": "", "signature": signature}]
    program |= {"guards_code": [], "torch_version": ""}
    cleaned: dict[str, Any] = _cleaned(program, path)
    cleaned["graph_module"]["module_call_graph"][0]["signature"] |= {"in_spec": ONE_IN, "out_spec": ONE_OUT}
    return cleaned


def _cleaned(value: Any, path: Path) -> Any:
    """Copy a part of a graph without its metadata. Raises InputError where a string is no plain name or size: torch
    makes Python code of it."""
    if isinstance(value, list):
        return [_cleaned(inner, path) for inner in value]
    if isinstance(value, dict):
        if isinstance(sizes := value.get("expr_str", ""), str) and SIZES.fullmatch(sizes):
            value = value | {"expr_str": ""} if sizes else value
        else:
            _refuse(path, f"a size is {sizes}")
        if "target" in value and "inputs" in value:
            _check_operation(value["target"], path)
        cleaned = {_cleaned(key, path): _cleaned(inner, path) for key, inner in value.items() if key != "metadata"}
        cleaned |= {"metadata": {}} if "metadata" in value else {}
        return cleaned | ({"expr_str": sizes} if sizes else {})
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        _refuse(path, f"a name is {value}")
    return value


def _check_operation(target: str, path: Path) -> None:
    family, _, name = target.rpartition(".")
    if family == "_operator" and name in OPERATORS:
        return
    operation, _, overload = target.removeprefix("torch.ops.aten.").partition(".")
    operator = getattr(getattr(torch.ops.aten, operation, None), overload, None)
    if target.startswith("torch.ops.aten.") and isinstance(operator, OpOverload) and operation != "from_file":
        return
    _refuse(path, f"it calls {target}")


def _refuse(path: Path, problem: str) -> NoReturn:
    raise InputError(
        f"{path} is not read: {problem[:200]}, and what is not plain operations on plain tensors could run any code; "
        "use a .safetensors file"
    )
