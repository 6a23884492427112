"""Replaces convolutions whose gradient oneDNN computes wrongly."""

import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN_BLOCK = 16  # channels that oneDNN's kernels take at once, at most


class Pointwise(nn.Conv2d):
    """Computes a 1×1 convolution with a stride as the 1×1 convolution of every stride-th pixel, with the same result.

    oneDNN's gradient of such a convolution's weights, in channels_last and float32, writes past its memory where
    there are fewer input channels than its block of 8 (AVX2) or 16 (AVX-512): its issue 6035, open in torch 2.15.
    """

    def forward(self, images: Tensor) -> Tensor:
        down, across = self.stride
        return F.conv2d(images[:, :, ::down, ::across], self.weight, self.bias, groups=self.groups)


def spare_onednn(net: nn.Module) -> None:
    """Make every convolution of the net Pointwise, in place, where oneDNN would compute its gradient wrongly."""
    for conv in net.modules():
        if type(conv) is not nn.Conv2d or conv.in_channels >= ONEDNN_BLOCK:
            continue
        if conv.kernel_size == (1, 1) != conv.stride and conv.padding == (0, 0):
            conv.__class__ = Pointwise
