"""Keeps the moving average of a net in training."""

import copy
from typing import Any

import torch
from torch import nn


class MovingAverage:
    """Keeps the exponential moving average of a net's weights and buffers, as torch.optim.swa_utils.AveragedModel does
    with get_ema_multi_avg_fn. But it never makes the host wait, so it can be part of a CUDA graph.

    net: the average.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self._decay, self._begun = copy.deepcopy(net), decay, False

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the net. The first call copies the net."""
        own_tensors, net_tensors = ([*module.parameters(), *module.buffers()] for module in (self.net, net))
        pairs = [*zip(own_tensors, net_tensors, strict=True)]
        moving = [pair for pair in pairs if self._begun and pair[0].is_floating_point()]
        if moving:
            torch._foreach_lerp_([own for own, _ in moving], [other for _, other in moving], 1 - self._decay)
        for own, other in pairs:
            if not self._begun or not own.is_floating_point():
                own.copy_(other)
        self._begun = True

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "begun": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self._begun = state["begun"]
