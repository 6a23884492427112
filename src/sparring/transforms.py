"""Batch augmentation: drawn for every sample of an epoch at once, applied to a batch in one call."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ASPECT = (3 / 4, 4 / 3)


def draw_crops(rng: np.random.Generator, count: int, area: tuple[float, float], flip: bool) -> Tensor:
    """One random resized crop, mirrored half of the time where `flip`, for each of `count` images.

    area: smallest and largest share of the image's area. The aspect ratio is log-uniform in 3/4 to 4/3, and a side
    longer than the image is cut to it. Returns affine maps (count, 2, 3), float32, for `crop`.
    """
    share = rng.uniform(*area, count)
    aspect = np.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), count))
    if area[0] == area[1] == 1:
        aspect[:] = 1
    width = np.minimum(np.sqrt(share * aspect), 1)
    height = np.minimum(np.sqrt(share / aspect), 1)
    across = rng.uniform(-1, 1, count) * (1 - width)
    down = rng.uniform(-1, 1, count) * (1 - height)
    mirror = np.where(rng.random(count) < 0.5, -1, 1) if flip else 1
    affine = np.zeros((count, 2, 3), np.float32)
    affine[:, 0, 0], affine[:, 0, 2] = width * mirror, across
    affine[:, 1, 1], affine[:, 1, 2] = height, down
    return torch.from_numpy(affine)


def crop(images: Tensor, affine: Tensor) -> Tensor:
    """Cut each image (N, C, H, W) as its affine map (N, 2, 3) says and scale it bilinearly to its old size."""
    grid = F.affine_grid(affine.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
