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
    longer than the image is cut to it. Returns boxes (count, 2, 2), float32: across and down, half the box's side and
    its centre, where the image reaches from -1 to 1; a negative side mirrors.
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
    boxes = np.stack([np.stack([width * mirror, across], 1), np.stack([height, down], 1)], 1)
    return torch.from_numpy(boxes.astype(np.float32))


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut its box (N, 2, 2) out of each image (N, C, H, W) and scale it bilinearly to the image's size."""
    height, width = images.shape[2:]
    boxes = boxes.to(images.device)
    across, down = _places(boxes[:, 0], width), _places(boxes[:, 1], height)
    # affine_grid, which can also rotate, took four times as long as this, and half of the sampler's time.
    grid = torch.stack([across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _places(box: Tensor, size: int) -> Tensor:
    """Where the centres of `size` pixels come to lie (N, size) along one axis of the boxes (N, 2)."""
    centres = (2 * torch.arange(size, device=box.device) + 1) / size - 1
    return box[:, :1] * centres + box[:, 1:]
