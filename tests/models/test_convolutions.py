"""Compares gradients of every kind of convolution that our constructors build with float64. Run as a script, this file
computes them.

A native library's fault may end the process, so each run of it is a child's.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparring.device import cpu_flags
from sparring.models import convolution
from sparring.models.convolution import Pointwise
from sparring.models.detector import _to_centre
from sparring.models.resnet import Block

CHANNELS = range(1, 18)  # past the 16 that oneDNN's kernels take at once on AVX-512
LAYOUTS = (torch.channels_last, torch.contiguous_format)
# Of a gradient's length. A right gradient is off by the format's rounding, a wrong one by a part of itself.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def convolutions(channels: int) -> Iterator[nn.Module]:
    """Yield a residual block's, 1×1 and 3×3 at strides 1 and 2; the detector's, to a smaller, equal and larger map."""
    for stride in (1, 2):
        block = Block(channels, 2 * channels, stride)
        yield from (module for module in block.modules() if isinstance(module, nn.Conv2d))
    for side in (8, 16, 32):
        yield from (
            module
            for module in _to_centre((channels, 16, 16), (2 * channels, side, side)).modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        )


def gradients(conv: nn.Module, images: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return the gradients of the mean square of a convolution's output, by its input and by its weights."""
    images = images.detach().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        out = conv(images)
    return list(torch.autograd.grad(out.square().mean(dtype=images.dtype), [images, *conv.parameters()]))


def check(conv: nn.Module) -> None:
    images = torch.randn(20, conv.in_channels, 16, 16)
    exact = gradients(conv.double(), images.double(), torch.float64)
    conv.float()
    for layout, dtype in itertools.product(LAYOUTS, BOUNDS):
        conv.to(memory_format=layout)
        ours = gradients(conv, images.to(memory_format=layout), dtype)
        for expected, gradient in zip(exact, ours, strict=True):
            error = float((gradient - expected).norm() / expected.norm())
            assert error < BOUNDS[dtype], f"{conv} in {layout} and {dtype} is off by {error:.2g}"


def every_gradient() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for conv in {str(conv): conv for channels in CHANNELS for conv in convolutions(channels)}.values():
        check(conv)


@pytest.mark.parametrize("instructions", ["as the processor has", "AVX2"])
def test_gradients_of_our_convolutions_are_those_of_float64(instructions: str) -> None:
    if instructions == "AVX2" and not any(flag.startswith("avx512") for flag in cpu_flags()):
        pytest.skip("this processor has no more than AVX2: nothing is left out by leaving out the rest")
    if instructions == "as the processor has":
        every_gradient()
        return
    limit = {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, __file__], env=os.environ | limit, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_strided_pointwise_convolution_is_torchs_own() -> None:
    own = nn.Conv2d(20, 6, 1, 2).double()
    ours = Pointwise(20, 6, 1, 2).double()
    ours.load_state_dict(own.state_dict())
    images = torch.rand(3, 20, 9, 8, dtype=torch.double)
    torch.testing.assert_close(ours(images), own(images), rtol=0, atol=1e-12)


def test_in_another_net_only_those_convolutions_change_that_onednn_gets_wrong() -> None:
    few, many = nn.Conv2d(15, 32, 1, 2), nn.Conv2d(16, 32, 1, 2)
    padded, dense, wide = nn.Conv2d(4, 8, 1, 2, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2)
    convolution.spare_onednn(nn.ModuleList([few, many, padded, dense, wide]))
    assert type(few) is Pointwise
    assert {type(conv) for conv in (many, padded, dense, wide)} == {nn.Conv2d}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
    every_gradient()
