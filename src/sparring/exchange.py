"""Model files that come and go: a structure as a program of torch.export, and anybody's model file for evaluation.

Nothing is unpickled, and no file that is read can run code of its own.
"""

import io
import json
import re
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile, ZipFile

import pandas as pd
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._ops import OpOverload

from sparring import evaluation, files, networks, progress, store
from sparring.device import channels_last, choose
from sparring.networks import Classifier
from sparring.params import EVALUATED_SPLITS, InputError, Network, Params

PROGRAM = ".pt2"
TENSORS = ".safetensors"
FACTS = "sparring.json"  # in a program, what is known of the model
# Of an archive of torch.export, what a copy of it needs, and all that such parts may be called.
PARTS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|\w+\.json)|data/constants/(tensor_\d+|\w+\.json)"
)
PLAIN = re.compile(r"[\w.]*")
SIZES = re.compile(r"(Symbol\('\w+'|[A-Z][A-Za-z]*\(|[a-z]+\d+|, \w+=True|[\d\s,()+*/-])*")
OPERATORS = {"getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le"}
OPERATORS |= {"gt", "ge"}
# One tensor in, one out, as torch.export writes it.
LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
INPUT = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]}
KEYWORDS = {"type": "builtins.dict", "context": "[]", "children_spec": []}
ONE_IN = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [INPUT, KEYWORDS]}])
ONE_OUT = json.dumps([1, LEAF])


def load(path: str | Path) -> Classifier:
    """The classifier in a model file of Sparring, on the CPU and in eval mode.

    It takes images (N, 3, H, W) in [0, 1], not normalised, and gives logits (N, classes). The file says what it is: no
    params.yaml is read. Raises InputError for a file that is missing or holds no classifier of Sparring.
    """
    path = Path(path)
    facts = networks.facts(path)
    classes, size = facts.get("classes"), facts.get("image_size")
    if not isinstance(classes, list) or not isinstance(size, int):
        raise InputError(f"{path} does not say its classes and image_size; train it again with `dvc repro`")
    net = networks.create(_network(facts, path), len(classes), size)
    _fill(net, path, len(classes), size)
    return net.eval()


def export(source: Path, target: Path) -> None:
    """Write the model file `source` as a program of torch.export, which torch.export.load reads without Sparring.

    images (N, 3, H, W) float32 in [0, 1], for any N, → logits (N, classes). What is known of the model is beside it,
    as the extra file sparring.json. Raises InputError as `load` does, and for a name that does not end in .pt2.
    """
    if target.suffix != PROGRAM:
        raise InputError(f"{target} should end in {PROGRAM}, as programs of torch.export do")
    net, facts = load(source), networks.facts(source)
    size = int(str(facts["image_size"]))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    written = io.BytesIO()
    torch.export.save(program, written, extra_files={FACTS: json.dumps(facts, sort_keys=True)})
    with files.replacing(target) as temporary:
        temporary.write_bytes(written.getvalue())


def evaluate(params: Params, path: Path, network: Network | None) -> pd.DataFrame:
    """Predict all clean and attacked test and held-out images with the model in a file, as `evaluation.evaluate` does.

    path: a safetensors file, of Sparring or of the architecture `network`; or a program of torch.export.
    Returns columns index, split, seed (0), attack, label, prediction, confidence. Raises InputError where the file
    cannot be read, or its model is not one for these classes and images.
    """
    device = choose(params)
    clean = {split: store.read(files.CLEAN / f"{split}.parquet") for split in EVALUATED_SPLITS}
    facts = clean["test"].metadata
    classes, size = len(facts["classes"]), int(facts["shape"][0])
    net = _read(path, network, classes, size, device)
    _check(net, path, classes, size, device)
    parts = []
    folders = evaluation.stored_folders(params)
    with progress.bar(f"evaluate {path.name}", sum(map(len, clean.values())) * (1 + len(folders))) as advance:
        for split, attack, images in evaluation.versions(clean, folders, None):
            rows = evaluation.classified(net, images, params.store.batch_size, device)
            parts.append(rows.assign(split=split, attack=attack, seed=0))
            advance(len(rows))
    return pd.concat(parts, ignore_index=True)


def _read(path: Path, network: Network | None, classes: int, size: int, device: torch.device) -> nn.Module:
    if not path.is_file():
        raise InputError(f"{path} is missing; name a {TENSORS} or a {PROGRAM} file")
    if path.suffix == PROGRAM:
        if network is not None:
            raise InputError(f"{path} is a program, which has its architecture in it; leave out --network")
        return _program(path, device)
    if path.suffix != TENSORS:
        raise InputError(
            f"{path} is neither {TENSORS} nor {PROGRAM}; a pickle can run any code when it is read, so convert it "
            'where you trust it: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{path}', weights_only=True), 'model{TENSORS}')\""
        )
    try:
        facts = networks.noted(path)
    except InputError as error:
        raise InputError(f"{path} is not a safetensors file ({_line(error.__cause__ or error)})") from error
    if network is None:
        if facts is None:
            raise InputError(f"{path} does not say its architecture; name it, as in --network vgg11_bn")
        network = _network(facts, path)
    trained, names = (facts or {}).get("image_size"), (facts or {}).get("classes")
    if isinstance(names, list) and len(names) != classes:
        raise InputError(f"{path} tells {len(names)} classes apart; the stored images have {classes}")
    if isinstance(trained, int) and trained != size:
        raise InputError(f"{path} is for images of {trained} pixels; the stored ones have {size}")
    net = networks.create(network, classes, size)
    _fill(net, path, classes, size)
    return channels_last(net, device)


def _network(facts: dict[str, object], path: Path) -> Network:
    try:
        return Network.model_validate(facts["network"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} does not say its architecture; name it, as in --network vgg11_bn") from error


def _fill(net: nn.Module, path: Path, classes: int, size: int) -> None:
    """The file's tensors into the net, whose last layer tells `classes` apart."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    wrong = networks.misfits(net, tensors)
    if not wrong:
        net.load_state_dict(tensors)
        return
    last = [(found, wanted) for found, wanted in wrong.values() if found and wanted and found[1:] == wanted[1:]]
    if len(last) == len(wrong) and all(wanted[0] == classes for _, wanted in last):
        raise InputError(f"{path} tells {last[0][0][0]} classes apart; the stored images have {classes}")
    name, (found, wanted) = next(iter(wrong.items()))
    raise InputError(
        f"{path} holds another architecture (of images of {size} pixels and {classes} classes): {name} is "
        f"{networks.words(found)}, not {networks.words(wanted)}; name its own with --network"
    )


def _check(net: nn.Module, path: Path, classes: int, size: int, device: torch.device) -> None:
    """Raise InputError unless the net makes of images of this size, however many, logits of so many classes."""
    for count in (2, 3):
        try:
            with torch.no_grad():
                logits = net.eval()(torch.zeros(count, 3, size, size, device=device))
        except Exception as error:  # whatever a program raises
            raise InputError(
                f"{path} cannot read {count} images of 3×{size}×{size} at a time ({_line(error)}); export it for that "
                "size, with a dynamic batch"
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
            raise InputError(f"{path} does not give one row of logits for each image")
        if logits.shape[1] != classes:
            raise InputError(f"{path} tells {logits.shape[1]} classes apart; the stored images have {classes}")


class _Program(nn.Module):
    """A program as other nets are: torch's own refuses to be set to eval mode, in which it always is."""

    def __init__(self, run: nn.Module) -> None:
        super().__init__()
        self.run = [run]  # in a list, so that it is no part of this module

    def forward(self, images: Tensor) -> Any:
        return self.run[0](images)


def _program(path: Path, device: torch.device) -> nn.Module:
    from torch.export.passes import move_to_device_pass

    try:
        program = torch.export.load(_harmless(path))
        return _Program(move_to_device_pass(program, device).module(check_guards=False))
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes torch raise
        raise InputError(f"{path} cannot be read as a program of torch.export ({_line(error)})") from error


def _harmless(path: Path) -> io.BytesIO:
    """A copy of an archive of torch.export, with its graph and its plain tensors alone.

    torch.export.load by itself unpickles example inputs, some tensors and objects, loads compiled libraries, imports
    what trees of arguments name, and evaluates sizes and guards as Python. The copy has no such part. What it does
    have is checked to be operations on tensors, by names that can be nothing else. Raises InputError where it is not.
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
                    content = json.dumps(_graph(json.loads(content), path)).encode()
                elif part.endswith(".json"):
                    _check_payload(json.loads(content), path)
                new.writestr(f"model/{part}", content)
    except (BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a program of torch.export ({_line(error)})") from error
    copy.seek(0)
    return copy


def _check_payload(payload: dict[str, Any], path: Path) -> None:
    for name, entry in payload["config"].items():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            _refuse(path, f"{name} is pickled")


def _graph(program: dict[str, Any], path: Path) -> dict[str, Any]:
    module = program["graph_module"]
    (signature,) = (entry["signature"] for entry in module["module_call_graph"] if entry["fqn"] == "")
    if [json.loads(signature[key]) for key in ("in_spec", "out_spec")] != [json.loads(ONE_IN), json.loads(ONE_OUT)]:
        raise InputError(f"{path} does not take one tensor of images and give one of logits")
    signature |= {"in_spec": "", "out_spec": ""}
    # What modules the nodes came from matters to nobody here.
    module["module_call_graph"] = [{"fqn": "", "signature": signature}]
    program |= {"guards_code": [], "torch_version": ""}
    cleaned: dict[str, Any] = _cleaned(program, path)
    cleaned["graph_module"]["module_call_graph"][0]["signature"] |= {"in_spec": ONE_IN, "out_spec": ONE_OUT}
    return cleaned


def _cleaned(value: Any, path: Path) -> Any:
    """A part of a graph without notes. Every name in it becomes Python code, so it may be a plain name only."""
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
    found = getattr(getattr(torch.ops.aten, operation, None), overload, None)
    if target.startswith("torch.ops.aten.") and isinstance(found, OpOverload) and operation != "from_file":
        return
    _refuse(path, f"it calls {target}")


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(
        f"{path} is not read: {what[:200]}, and what is not plain operations on plain tensors could run any code; "
        f"use a {TENSORS} file"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
