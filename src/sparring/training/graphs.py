"""A training step as one CUDA graph."""

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
"""Learns from a batch, given as tensors or None in a fixed order, and returns sums over it."""
Capture = Callable[[Callable[[], Sums]], tuple[Sums, Callable[[], Sums]]]
"""Runs a function once and records it. Returns its result, and a function that repeats the recorded work, which reads
and writes the same memory as the first time."""

# Batches that are run as they are before a capture: by then optimizers have their momenta and libraries have chosen.
WARM_UP = 3


def captured(
    learn: Learn, optimizers: Sequence[torch.optim.Optimizer], settings: Training, device: torch.device
) -> Learn:
    """`learn` as a CUDA graph: on one CUDA GPU, unless `training.graphs` is off; else as it is."""
    if settings.graphs == "off" or device.type != "cuda" or distributed.size() > 1:
        return learn
    return Captured(learn, optimizers, settings.batch_size, capture.on_cuda)


class Captured:
    """`learn`, captured at its fourth whole batch and replayed from then on.

    A batch of another size is learned from as it is, and so are all batches where a capture fails: then a line on
    standard error says why. Whoever goes on with a training makes this anew, and so captures again.
    """

    def __init__(
        self, learn: Learn, optimizers: Sequence[torch.optim.Optimizer], batch_size: int, capture: Capture
    ) -> None:
        """optimizers: those that `learn` steps, whose learning rates may change from batch to batch."""
        self._learn, self._size, self._capture = learn, batch_size, capture
        self._groups: list[dict[str, Any]] = [group for each in optimizers for group in each.param_groups]
        self._warm = 0
        self._inputs: list[Tensor | None] = []
        self._rates: list[Tensor] = []
        self._replay: Callable[[], Sums] | None = None
        self._failed = False

    def __call__(self, rows: Tensor, *inputs: Tensor | None, **through: Any) -> Sums:
        """rows, inputs: the batch.  through: a transform's draw, where there is one. The host makes it anew for each
        batch, so a graph cannot repeat it, and nothing is captured."""
        if self._failed or through or len(rows) != self._size:
            return self._learn(rows, *inputs, **through)
        if self._warm < WARM_UP:
            self._warm += 1
            return capture.on_another_stream(partial(self._learn, rows, *inputs), rows.device)
        if self._replay is None:
            return self._first(rows, *inputs)
        self._fill(rows, *inputs)
        return self._replay()

    def _first(self, *inputs: Tensor | None) -> Sums:
        # Memory that stays: what is captured reads its batch and its learning rates from there.
        self._inputs = [None if each is None else each.clone() for each in inputs]
        self._rates = [torch.tensor(float(group["lr"]), device=_device(inputs)) for group in self._groups]
        rates = [group["lr"] for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            sums, self._replay = self._capture(lambda: self._learn(*self._inputs))
        except RuntimeError as error:
            print(capture.failure(error), file=sys.stderr)
            self._failed = True
        finally:  # schedules go on with numbers, which checkpoints keep
            for group, number in zip(self._groups, rates, strict=True):
                group["lr"] = number
        return self._learn(*inputs) if self._failed else sums

    def _fill(self, *inputs: Tensor | None) -> None:
        for mine, given in zip(self._inputs, inputs, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given)
        for group, rate in zip(self._groups, self._rates, strict=True):
            rate.fill_(group["lr"])


def _device(inputs: Sequence[Tensor | None]) -> torch.device:
    return next(each.device for each in inputs if each is not None)
