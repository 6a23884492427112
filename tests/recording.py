"""The tests of recorded GPU work share this stand-in for CUDA's capture, which like it sees only memory."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
HOST = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}  # They break a capture.


class _Recorder(TorchDispatchMode):
    """This mode notes every operation with the memory that it reads and writes."""

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
    """Record work as `capture.on_cuda` does, on a CPU: a replay does every operation again, on the same memory."""
    with _Recorder() as recorder:
        result = work()

    def replay() -> T:
        with torch.no_grad():
            for func, args, kwargs, out in recorder.operations:
                storages = {_storage(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
                old = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
                if old and all(_storage(tensor) in storages for tensor in old) and not func._schema.is_mutable:
                    continue  # It is a view of memory that exists already.
                new = [tensor for tensor in tree_leaves(func(*args, **kwargs)) if isinstance(tensor, Tensor)]
                for old_tensor, new_tensor in zip(old, new, strict=True):
                    if _storage(old_tensor) not in storages:
                        old_tensor.detach().copy_(new_tensor.detach())
        return result

    return result, replay


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
