"""FaceNet's network is Inception-ResNet-v1 (Szegedy et al., 2017, arXiv 1602.07261), with a layer for classes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparring.models.signs_and_faces import Staged

SIDE = 80  # pixels; its layers need 75
EMBEDDING = 512
DEPTHS = (5, 10, 5)  # blocks of each kind; one more of the last kind follows, without scaling and ReLU


def create(classes: int, width_factor: float, dropout: float) -> Staged:
    """Create the network with random weights. It resizes images of any size to 80×80 pixels.

    width_factor: by which all numbers of channels are multiplied.  dropout: share of the pooled features that is
    dropped in training.
    """

    def scaled(channels: int) -> int:
        return max(1, round(channels * width_factor))

    stem = nn.Sequential(
        _Conv(3, scaled(32), 3, stride=2),
        _Conv(scaled(32), scaled(32), 3),
        _Conv(scaled(32), scaled(64), 3, padding=1),
    )
    fine = scaled(256)
    middle = fine + scaled(384) + scaled(256)
    coarse = middle + scaled(384) + 2 * scaled(256)
    size = scaled(EMBEDDING)
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(coarse, size, bias=False),
        nn.BatchNorm1d(size, eps=1e-3),
        nn.Linear(size, classes),
    )
    return Staged(
        [stem, _fine(scaled, fine), _middle(scaled, fine, middle), _coarse(scaled, middle, coarse)], head, SIDE
    )


def _fine(scaled: Callable[[int], int], channels: int) -> nn.Module:
    return nn.Sequential(
        nn.MaxPool2d(3, 2),
        _Conv(scaled(64), scaled(80), 1),
        _Conv(scaled(80), scaled(192), 3),
        _Conv(scaled(192), channels, 3, stride=2),
        *(_block_35(channels, scaled(32)) for _ in range(DEPTHS[0])),
    )


def _middle(scaled: Callable[[int], int], before: int, channels: int) -> nn.Module:
    reduction = _Reduction(
        _Conv(before, scaled(384), 3, stride=2),
        nn.Sequential(
            _Conv(before, scaled(192), 1),
            _Conv(scaled(192), scaled(192), 3, padding=1),
            _Conv(scaled(192), scaled(256), 3, stride=2),
        ),
    )
    return nn.Sequential(reduction, *(_block_17(channels, scaled(128)) for _ in range(DEPTHS[1])))


def _coarse(scaled: Callable[[int], int], before: int, channels: int) -> nn.Module:
    reduction = _Reduction(
        nn.Sequential(_Conv(before, scaled(256), 1), _Conv(scaled(256), scaled(384), 3, stride=2)),
        nn.Sequential(_Conv(before, scaled(256), 1), _Conv(scaled(256), scaled(256), 3, stride=2)),
        nn.Sequential(
            _Conv(before, scaled(256), 1),
            _Conv(scaled(256), scaled(256), 3, padding=1),
            _Conv(scaled(256), scaled(256), 3, stride=2),
        ),
    )
    blocks = [_block_8(channels, scaled(192), 0.2) for _ in range(DEPTHS[2])]
    return nn.Sequential(reduction, *blocks, _block_8(channels, scaled(192), 1.0, rectified=False))


class _Conv(nn.Sequential):
    """Applies a convolution, BatchNorm and ReLU.  kernel: side, or height and width."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(channels, eps=1e-3),
            nn.ReLU(True),
        )


class _Residual(nn.Module):
    """Adds scale × a 1×1 convolution of the concatenated branches to its input. `rectified`: whether ReLU follows."""

    def __init__(self, branches: list[nn.Module], width: int, channels: int, scale: float, rectified: bool) -> None:
        """width: channels of all branches together.  channels: those of the input."""
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.join = nn.Conv2d(width, channels, 1)
        self.scale, self.rectified = scale, rectified

    def forward(self, maps: Tensor) -> Tensor:
        change = self.join(torch.cat([branch(maps) for branch in self.branches], 1))
        out = maps + self.scale * change
        return out.relu() if self.rectified else out


def _block_35(channels: int, width: int) -> nn.Module:
    branches: list[nn.Module] = [
        _Conv(channels, width, 1),
        nn.Sequential(_Conv(channels, width, 1), _Conv(width, width, 3, padding=1)),
        nn.Sequential(_Conv(channels, width, 1), _Conv(width, width, 3, padding=1), _Conv(width, width, 3, padding=1)),
    ]
    return _Residual(branches, 3 * width, channels, 0.17, True)


def _block_17(channels: int, width: int) -> nn.Module:
    long = nn.Sequential(
        _Conv(channels, width, 1),
        _Conv(width, width, (1, 7), padding=(0, 3)),
        _Conv(width, width, (7, 1), padding=(3, 0)),
    )
    return _Residual([_Conv(channels, width, 1), long], 2 * width, channels, 0.1, True)


def _block_8(channels: int, width: int, scale: float, rectified: bool = True) -> nn.Module:
    long = nn.Sequential(
        _Conv(channels, width, 1),
        _Conv(width, width, (1, 3), padding=(0, 1)),
        _Conv(width, width, (3, 1), padding=(1, 0)),
    )
    return _Residual([_Conv(channels, width, 1), long], 2 * width, channels, scale, rectified)


class _Reduction(nn.Module):
    """Concatenates branches of half the resolution, the last of which is a max-pool."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList([*branches, nn.MaxPool2d(3, 2)])

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], 1)
