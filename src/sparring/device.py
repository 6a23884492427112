"""Device, precision and seeds: the three things that decide whether a run can be repeated."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from sparring.params import Params
from sparring.params.errors import InputError

Net = TypeVar("Net", bound=nn.Module)


class MachineSettings(Protocol):
    """The device and the determinism that params.yaml, or an audit, asks for."""

    @property
    def device(self) -> str: ...

    @property
    def deterministic(self) -> bool: ...


def rng(seed: int, *what: str | int) -> np.random.Generator:
    """A generator that is a function of the seed and of what it is for, so that no draw depends on another."""
    text = "/".join(str(part) for part in (seed, *what))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


@contextmanager
def torch_seed(seed: int, *what: str | int) -> Iterator[None]:
    """Seed the global generators of torch and numpy inside the block only, for library code that draws from them."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        drawn = int(rng(seed, *what).integers(2**62))
        torch.manual_seed(drawn)
        before = np.random.get_state()
        np.random.seed(drawn % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)


def choose(params: MachineSettings) -> torch.device:
    """The device that `device` names; auto is CUDA where there is a GPU. Raises InputError where it is absent.

    Also sets float32 to mean float32: no TF32, as images on a decision boundary flip otherwise; and deterministic
    algorithms where `deterministic` asks for them. An operation that has none warns, and runs as it is.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, before its first use
    # Only where it changes something, as it imports torch's compiler: two seconds of every stage.
    if params.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(params.deterministic, warn_only=True)
    torch.backends.cudnn.deterministic = params.deterministic
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    name = params.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"params.yaml: device is {name}; this machine has {torch.cuda.device_count()} CUDA GPUs, use auto"
        )
    return device


def precision(params: Params, device: torch.device) -> torch.dtype:
    """The dtype of training's matrix work; `auto` is bfloat16 where the hardware has units for it."""
    if params.precision != "auto":
        return getattr(torch, params.precision)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
    return torch.bfloat16 if fast else torch.float32


def cpu_flags() -> set[str]:
    """What the processor can do, in the words of /proc/cpuinfo; nothing where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def channels_last(net: Net, device: torch.device) -> Net:
    """The net on the device, its convolutions in the layout in which the stores hold the images."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device. A GPU need not have finished what it does: the copy waits in its queue."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def hardware(device: torch.device) -> str:
    """What the run ran on, in words, for the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
