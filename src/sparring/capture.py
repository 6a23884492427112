"""This module records GPU work as one CUDA graph. One launch starts its thousand kernels, so the GPU does not wait for
Python."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def on_cuda(work: Callable[[], T], pool: Any = None) -> tuple[T, Callable[[], T]]:
    """Record the GPU operations of `work`, and run them once.

    pool: a pool of memory that several graphs share (torch.cuda.graph_pool_handle). Without it, each graph has its own.
    Returns the result of `work` and a function that repeats the recorded operations, on the same memory as the first
    time. Raises RuntimeError where `work` needs the host, as `tensor.item()` does.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):  # This runs nothing. It also registers the generators of dropout.
        result = work()

    def replay() -> T:
        graph.replay()
        return result

    return replay(), replay


def on_another_stream(work: Callable[[], T], device: torch.device) -> T:
    """Run `work` on a stream of its own, as PyTorch requires before a recording, and return its result.

    On a CPU, `work` just runs.
    """
    if device.type != "cuda":
        return work()
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = work()
    current.wait_stream(stream)
    return result


def failure(error: RuntimeError) -> str:
    """Return the message for standard error that says why recording failed."""
    return f"going on without a CUDA graph: {' '.join(str(error).split())[:200]}"
