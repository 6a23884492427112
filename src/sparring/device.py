"""This module sets device, precision and seeds, which decide whether a run can be repeated."""

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
    """These settings of params.yaml, or of an audit, choose the device and whether algorithms are deterministic."""

    @property
    def device(self) -> str: ...

    @property
    def deterministic(self) -> bool: ...


def rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a generator that depends on the seed and the purpose alone, so that no draw depends on another.

    purpose: words and numbers that name what is drawn, as in rng(seed, "crop", epoch).
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


@contextmanager
def torch_seed(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed the global generators of torch and numpy inside the block only, for library code that draws from them.

    seed, purpose: as in `rng`.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        derived_seed = int(rng(seed, *purpose).integers(2**62))
        torch.manual_seed(derived_seed)
        numpy_state = np.random.get_state()
        np.random.seed(derived_seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


def choose(params: MachineSettings) -> torch.device:
    """Return the device that `device` names; `auto` is CUDA where there is a GPU. Raises InputError where it is absent.

    This also turns TF32 off, which flips images on a decision boundary, and turns deterministic algorithms on where
    `deterministic` says so. An operation that has no deterministic algorithm warns, and runs as it is.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it, before its first use
    # Called only where it changes something: it imports torch's compiler, which takes every stage two seconds.
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
    """Return the dtype of the matrix products in training; `auto` is bfloat16 where the hardware has units for it."""
    if params.precision != "auto":
        return getattr(torch, params.precision)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
    return torch.bfloat16 if fast else torch.float32


def cpu_flags() -> set[str]:
    """Return the processor's flags from /proc/cpuinfo, or the empty set where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def channels_last(net: Net, device: torch.device) -> Net:
    """Move the net to the device, its convolutions in the memory layout in which the stores hold the images."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to the device. The copy to a GPU waits in its queue, so the caller does not wait for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def hardware(device: torch.device) -> str:
    """Name the GPU, or the processor with its threads and cores, for the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' * (threads > 1)} of {os.cpu_count()} cores"
