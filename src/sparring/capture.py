"""Work on a GPU as one CUDA graph: the GPU gets its thousand kernels by one launch, and waits for no Python."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def on_cuda(work: Callable[[], T], pool: Any = None) -> tuple[T, Callable[[], T]]:
    """Record what `work` has the GPU do, and do it.

    pool: a pool of memory that several graphs share (torch.cuda.graph_pool_handle); each has its own otherwise.
    Returns the result of `work`, and a function that does the recorded work again, which reads and writes the same
    memory as the first time. Raises RuntimeError where `work` asks the host for anything.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):  # in which nothing runs; the generators that dropout draws from register
        result = work()

    def replay() -> T:
        graph.replay()
        return result

    return replay(), replay


def on_another_stream(work: Callable[[], T], device: torch.device) -> T:
    """The result of `work`, done on a stream of its own, as PyTorch asks for what is recorded later."""
    if device.type != "cuda":
        return work()
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = work()
    current.wait_stream(stream)
    return result


def failure(error: RuntimeError) -> str:
    """What standard error says where recording failed."""
    return f"going on without a CUDA graph: {' '.join(str(error).split())[:200]}"
