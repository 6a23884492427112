"""Captures a training step as one CUDA graph."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparring import capture, distributed
from sparring.params.sections import Training

Sums = dict[str, Tensor]
Learn = Callable[..., Sums]
"""Such a function learns from a batch, passed as tensors or None in a fixed order, and returns sums over it."""
Capture = Callable[[Callable[[], Sums]], tuple[Sums, Callable[[], Sums]]]
"""Such a function runs another once and records it. It returns its result, and a function that repeats the recorded
work, which reads and writes the same memory as the first time."""

# Batches that run uncaptured first: by then optimizers have their momenta and libraries have chosen their kernels.
WARM_UP = 3


def captured(
    learn: Learn, optimizers: Sequence[torch.optim.Optimizer], settings: Training, device: torch.device
) -> Learn:
    """Return `learn` as a CUDA graph on one CUDA GPU, unless `training.graphs` is off; else return it unchanged."""
    if settings.graphs == "off" or device.type != "cuda" or distributed.size() > 1:
        return learn
    return Captured(learn, optimizers, settings.batch_size, capture.on_cuda)


class Captured:
    """Captures `learn` at its fourth whole batch, and replays it from then on.

    For a batch of another size `learn` runs uncaptured. So it does for all batches where a capture fails; then a line
    on standard error says why. A training that is resumed creates this anew, and so captures again.
    """

    def __init__(
        self, learn: Learn, optimizers: Sequence[torch.optim.Optimizer], batch_size: int, capture: Capture
    ) -> None:
        """optimizers: those that `learn` steps, whose learning rates may change from batch to batch."""
        self._learn, self._size, self._capture = learn, batch_size, capture
        self._groups: list[dict[str, Any]] = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._warm = 0
        self._inputs: list[Tensor | None] = []
        self._rates: list[Tensor] = []
        self._replay: Callable[[], Sums] | None = None
        self._failed = False

    def __call__(self, rows: Tensor, *inputs: Tensor | None, **draws: Any) -> Sums:
        """Learn from a batch.  rows, inputs: the batch.  draws: a transform's draw, where there is one. The host makes
        it anew for each batch, so a graph cannot repeat it, and nothing is captured."""
        if self._failed or draws or len(rows) != self._size:
            return self._learn(rows, *inputs, **draws)
        if self._warm < WARM_UP:
            self._warm += 1
            return capture.on_another_stream(partial(self._learn, rows, *inputs), rows.device)
        if self._replay is None:
            return self._capture_first(rows, *inputs)
        self._fill(rows, *inputs)
        return self._replay()

    def _capture_first(self, *inputs: Tensor | None) -> Sums:
        # This memory stays: the captured work reads its batch and its learning rates from there.
        self._inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        self._rates = [torch.tensor(float(group["lr"]), device=_device(inputs)) for group in self._groups]
        rates = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            sums, self._replay = self._capture(lambda: self._learn(*self._inputs))
        except RuntimeError as error:
            print(capture.failure(error), file=sys.stderr)
            self._failed = True
        finally:  # schedules need numbers, which checkpoints can store
            for group, number in zip(self._groups, rates, strict=True):
                group["lr"] = number
        return self._learn(*inputs) if self._failed else sums

    def _fill(self, *inputs: Tensor | None) -> None:
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor)
        for group, rate in zip(self._groups, self._rates, strict=True):
            rate.fill_(group["lr"])


def _device(inputs: Sequence[Tensor | None]) -> torch.device:
    return next(tensor.device for tensor in inputs if tensor is not None)
