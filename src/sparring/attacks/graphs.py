"""Makes attacks fast on a GPU: passes through a net run as CUDA graphs, and batches shrink by halves."""

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparring import capture

Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, ...])
Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], Any]]]
"""A recorder runs a function once and records it, as `capture.on_cuda` does."""

WARM_UP = 2  # times that a pass runs as it is before it is recorded: by then libraries have chosen their kernels
CHECK_INTERVAL = 5  # steps after which a GPU is asked which images are finished


class Graphs:
    """Runs passes through one net. Each is recorded at its third call with tensors of the same sizes, and replayed
    from then on.

    Where a recording fails, standard error says why, and all passes run as they are.
    """

    def __init__(self, record: Recorder | None = None) -> None:
        """record: the recorder; by default CUDA's, with one pool of memory for all recordings."""
        self._record = record or partial(capture.on_cuda, pool=torch.cuda.graph_pool_handle())
        self._calls: dict[Any, int] = {}
        self._recorded: dict[Any, tuple[tuple[Tensor, ...], Callable[[], Any]]] = {}
        self._failed = False

    def run(self, name: str, work: Callable[..., Any], tensors: tuple[Tensor, ...], settings: dict[str, Any]) -> Any:
        """Return work(*tensors, **settings), one tensor or a tuple, replayed where it is recorded.

        name: identifies `work`; no other function may have it.
        """
        key = (name, *settings.items(), *map(_size, tensors))
        if key not in self._recorded:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._failed or self._calls[key] <= WARM_UP:
                return capture.on_another_stream(partial(work, *tensors, **settings), tensors[0].device)
            return self._record_first(key, work, tensors, settings)
        inputs, replay = self._recorded[key]
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer.copy_(tensor.detach())
        return _copied(replay())

    def _record_first(
        self, key: Any, work: Callable[..., Any], tensors: tuple[Tensor, ...], settings: dict[str, Any]
    ) -> Any:
        inputs = tuple(tensor.detach().clone() for tensor in tensors)
        try:
            result, replay = self._record(partial(work, *inputs, **settings))
        except RuntimeError as error:
            print(capture.failure(error), file=sys.stderr)
            self._failed = True
            return work(*tensors, **settings)
        self._recorded[key] = inputs, replay
        return _copied(result)


def _size(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype


def _copied(result: Any) -> Any:
    """Copy a replay's result, as the next replay of any pass writes to the same memory."""
    return result.clone() if isinstance(result, Tensor) else tuple(tensor.clone() for tensor in result)


def in_a_graph(work: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Have `work` replayed as a CUDA graph where its model holds graphs (engine.Fast).

    work: is called as work(model, *tensors, **settings). It must change none of the tensors, return new ones, and make
    the host wait for nothing: it has no `if` on a number in a tensor, and picks no rows by a mask.
    """

    @wraps(work)
    def run(model: Callable[[Tensor], Tensor], *tensors: Tensor, **settings: Any) -> Tensors:
        graphs = getattr(model, "graphs", None)
        if graphs is None:
            return work(model, *tensors, **settings)
        return graphs.run(f"{work.__module__}.{work.__qualname__}", partial(work, model), tensors, settings)

    return run


def in_halves(device: torch.device) -> bool:
    """Say whether a batch shrinks by halves. It does on a GPU, which idles while the host reads a number from it, and
    where each new size has to be recorded. On a CPU a batch shrinks to the images that are not finished."""
    return device.type == "cuda"


def rows_to_keep(active: Tensor, step: int) -> Tensor | None:
    """Return the rows (n,) of a batch with which an attack goes on at a step, or None where it goes on with all.

    active: (N,), which images are not finished.
    step: from 0. A GPU is asked at every CHECK_INTERVAL-th; at the steps between, the attack goes on with all.
    By halves (`in_halves`), finished images stay in the batch, so the attack must leave them as they are.
    """
    if not in_halves(active.device):
        return None if bool(active.all()) else active.nonzero()[:, 0]
    if step % CHECK_INTERVAL:
        return None
    count = int(active.sum())
    size = len(active) if count else 0
    while 0 < count <= size // 2:
        size //= 2
    return None if size == len(active) else active.to(torch.uint8).argsort(descending=True, stable=True)[:size]
