"""Runs attacks on a fast copy of the model, in smaller batches when memory runs out."""

import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparring.attacks.graphs import Graphs
from sparring.device import channels_last
from sparring.models.averaged import Averaged
from sparring.models.classifier import Classifier
from sparring.models.networks import frozen
from sparring.params.attacks import Attack

# From this many floating-point operations on, torch.compile pays in a run on a CPU (docs/attacks.md).
WORTH_COMPILING = 2e14


class Aim(Protocol):
    """An aim is the model that an attack queries: it maps images (N, 3, H, W) in [0, 1] to logits (N, classes)."""

    def __call__(self, images: Tensor) -> Tensor: ...

    def quick(self, images: Tensor) -> Tensor:
        """Return the logits without gradient."""


class Fast(nn.Module):
    """This copy of a net computes gradients fast. It is in eval mode, its parameters have no gradient, BatchNorm
    is folded into the convolutions, it is channels_last, and it multiplies matrices in `dtype`. Logits and maps are
    returned as float32. The net itself is not changed.

    compiled: whether torch.compile compiles it, when first used. Where that is impossible, as without a C++ compiler,
    a line on standard error says so and the copy works uncompiled.
    graphs: repeats passes through this copy on a GPU (attacks/graphs.py). It is None on a CPU, and for a net that draws
    at random, whose draws a graph would repeat.
    """

    def __init__(self, net: Classifier, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> None:
        super().__init__()
        self.net = channels_last(frozen(net), device)
        self.dtype = dtype
        self.graphs = Graphs() if device.type == "cuda" and not isinstance(net, Averaged) else None
        self.compiled = compiled
        if compiled:
            # DeepFool goes back through one pass several times, so its buffers must outlive the first.
            torch._functorch.config.donated_buffer = False
        # Batches shrink as images are finished: one compilation for all sizes.
        self.fast_maps = torch.compile(self.net.maps, dynamic=True) if compiled else self.net.maps
        self.fast_logits = torch.compile(self.net.forward, dynamic=True) if compiled else self.net.forward
        self.eval()

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        with self._precision(images):
            maps = self._run_or_fall_back(self.fast_maps, self.net.maps, images)
        return {name: feature_map.float() for name, feature_map in maps.items()}

    def forward(self, images: Tensor) -> Tensor:
        with self._precision(images):
            logits = self._run_or_fall_back(self.fast_logits, self.net.forward, images)
        return logits.float()

    @torch.no_grad()
    def quick(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) without gradient, and uncompiled: a single pass does not pay for compiling."""
        with self._precision(images):
            logits = self.net(images)
        return logits.float()

    def _precision(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _run_or_fall_back(self, fast: Callable[[Tensor], Any], plain: Callable[[Tensor], Any], images: Tensor) -> Any:
        if self.compiled:
            # Imported here, as it takes seconds, which only a compiled attack should pay.
            from torch._dynamo.exc import TorchDynamoException

            try:
                return fast(images)
            except TorchDynamoException as error:
                print(f"going on without torch.compile: {' '.join(str(error).split())[:200]}", file=sys.stderr)
                self.compiled = False
        return plain(images)


def worth_compiling(net: Classifier, attack: Attack, shape: tuple[int, ...], count: int, device: torch.device) -> bool:
    """Tell whether attacking `count` images (H, W, C) is so much work that torch.compile saves more time than it takes.

    It is not worth it on a GPU, where CUDA graphs save as much.
    count: of the whole run, also where a killed run made a part, as both parts must be computed in the same way.
    """
    if device.type == "cuda" or isinstance(net, Averaged):  # Averaged draws in numpy, which the compiler cannot trace
        return False
    passes = math.prod(int(attack.arguments.get(name, 1)) for name in ("steps", "restarts", "search_steps"))
    runs = 2 * count * passes  # forward and back
    # First by a bound, as counting takes two seconds: a weight multiplies and adds at most once for each pixel.
    weights = sum(weight.numel() for weight in net.parameters())
    if runs * 2 * weights * shape[0] * shape[1] < WORTH_COMPILING:
        return False
    from torch.utils.flop_counter import FlopCounterMode  # here, as it loads Triton, a third of a stage's own start

    probe = torch.zeros(1, shape[2], *shape[:2], device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(probe)
    return runs * counter.get_total_flops() >= WORTH_COMPILING


def compile_below(folder: Path) -> None:
    """Have torch.compile keep its files in a folder, which is emptied first.

    A process that is killed while it compiles leaves a truncated library, on which the next process would fail.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def run(
    attack: Callable[..., Tensor],
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    extra: dict[str, Tensor],
) -> Tensor:
    """Return attacked images (N, 3, H, W). Where memory runs out, the batch is halved, again and again.

    extra: further arguments of the attack with a row for each image, such as noise (N, …).  Raises the out-of-memory
    error where one image alone causes it.
    """
    try:
        return attack(model, images, labels, **extra)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if len(images) < 2 or not is_out_of_memory(error):
            raise
    # Not in the handler, as its traceback keeps the failed attempt's tensors alive.
    if images.device.type == "cuda":
        torch.cuda.empty_cache()
    half = len(images) // 2
    parts = [
        run(attack, model, images[rows], labels[rows], {name: value[rows] for name, value in extra.items()})
        for rows in (slice(0, half), slice(half, None))
    ]
    return torch.cat(parts)


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
