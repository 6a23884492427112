"""Attacks as a GPU likes them: passes through a net as CUDA graphs, and batches that shrink by halves."""

import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparring import capture

Tensors = TypeVar("Tensors", Tensor, tuple[Tensor, ...])
Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], Any]]]
"""Runs a function once and records it, as `capture.on_cuda` does."""

WARM_UP = 2  # times that a pass runs as it is before it is recorded: by then libraries have chosen their kernels
EVERY = 5  # steps after which a GPU is asked whose attack is over


class Graphs:
    """Passes through one net, each recorded at its third call with tensors of the same sizes and replayed from then on.

    Where a recording fails, standard error says why, and all passes run as they are.
    """

    def __init__(self, record: Recorder | None = None) -> None:
        """record: by default CUDA's, with one pool of memory for all."""
        self._record = record or partial(capture.on_cuda, pool=torch.cuda.graph_pool_handle())
        self._calls: dict[Any, int] = {}
        self._recorded: dict[Any, tuple[tuple[Tensor, ...], Callable[[], Any]]] = {}
        self._failed = False

    def run(self, name: str, work: Callable[..., Any], tensors: tuple[Tensor, ...], settings: dict[str, Any]) -> Any:
        """work(*tensors, **settings): one tensor, or several.  name: by which no other work goes."""
        key = (name, *settings.items(), *map(_size, tensors))
        if key not in self._recorded:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._failed or self._calls[key] <= WARM_UP:
                return capture.on_another_stream(partial(work, *tensors, **settings), tensors[0].device)
            return self._first(key, work, tensors, settings)
        inputs, replay = self._recorded[key]
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given.detach())
        return _copied(replay())

    def _first(self, key: Any, work: Callable[..., Any], tensors: tuple[Tensor, ...], settings: dict[str, Any]) -> Any:
        inputs = tuple(each.detach().clone() for each in tensors)
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
    """The next replay, of whatever pass, writes to the same memory."""
    return result.clone() if isinstance(result, Tensor) else tuple(each.clone() for each in result)


def in_a_graph(work: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Have `work` replayed as a CUDA graph where its model holds graphs (engine.Fast).

    work: called as work(model, *tensors, **settings). It changes none of the tensors, returns new ones, and asks the
    host for nothing: it has no `if` on a number in a tensor, and no rows picked by a mask.
    """

    @wraps(work)
    def run(model: Callable[[Tensor], Tensor], *tensors: Tensor, **settings: Any) -> Tensors:
        graphs = getattr(model, "graphs", None)
        if graphs is None:
            return work(model, *tensors, **settings)
        return graphs.run(f"{work.__module__}.{work.__qualname__}", partial(work, model), tensors, settings)

    return run


def in_halves(device: torch.device) -> bool:
    """Whether a batch shrinks by halves: on a GPU, which waits while it is asked for a number, and where each new size
    has to be recorded. On a CPU it shrinks to whoever is not finished."""
    return device.type == "cuda"


def staying(going: Tensor, step: int, every: int = EVERY) -> Tensor | None:
    """The rows (n,) of a batch with which an attack goes on at a step, or None where with all.

    going: (N,), whose attack is not finished.  step: from 0; a GPU is asked at every `every`-th alone.
    By halves (`in_halves`), finished images stay in the batch, so that the attack must leave them as they are.
    """
    if not in_halves(going.device):
        return None if bool(going.all()) else going.nonzero()[:, 0]
    if step % every:
        return None
    count = int(going.sum())
    size = len(going) if count else 0
    while 0 < count <= size // 2:
        size //= 2
    return None if size == len(going) else going.to(torch.uint8).argsort(descending=True, stable=True)[:size]
