"""Shared by the tests of what a GPU records: a stand-in for CUDA's capture that, like it, knows memory alone."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
HOST = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}  # a capture breaks at them


class _Recorder(TorchDispatchMode):
    """Notes every operation with the memory that it reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in HOST:
            raise RuntimeError(f"the host is asked: {func}")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


def recorded(work: Callable[[], T]) -> tuple[T, Callable[[], T]]:
    """As `capture.on_cuda`, on a CPU: a replay does every operation again, on the same memory."""
    with _Recorder() as recorder:
        result = work()

    def replay() -> T:
        with torch.no_grad():
            for func, args, kwargs, out in recorder.operations:
                given = {_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
                old = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
                if old and all(_storage(each) in given for each in old) and not func._schema.is_mutable:
                    continue  # a view of memory that is there
                new = [each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, Tensor)]
                for mine, made in zip(old, new, strict=True):
                    if _storage(mine) not in given:
                        mine.detach().copy_(made.detach())
        return result

    return result, replay


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
