"""This module augments training images: it crops or shifts them, and mirrors them."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparring.device import rng
from sparring.params.sections import Training

ASPECT = (3 / 4, 4 / 3)


class Augmentation(NamedTuple):
    """An augmentation says how each of N images is cropped or shifted, and mirrored.

    boxes: (N, 2, 2), the crops, as `draw_crops` returns them.
    shifts: (N, 2), the whole pixels, across and down, by which the net's view shifts; None where images are cropped.
    Where there are shifts, the boxes crop nothing and only mirror.
    """

    boxes: Tensor
    shifts: Tensor | None

    def of(self, rows: Tensor) -> "Augmentation":
        """Return the augmentation of these rows alone."""
        return Augmentation(self.boxes[rows], None if self.shifts is None else self.shifts[rows])

    def apply(self, images: Tensor) -> Tensor:
        """Augment images (N, C, H, W). Pixels that a shift brings in from outside are 0."""
        if self.shifts is None:
            return crop(images, self.boxes)
        across, down = self.shifts.unbind(1)
        columns = self._mirrored(_along(images.shape[3], images.device)) + across[:, None]
        return _take(images, _along(images.shape[2], images.device) + down[:, None], columns, torch.zeros_like(images))

    def undo(self, values: Tensor, lost: Tensor) -> Tensor:
        """Move values (N, C, H, W), one for each pixel of the augmented images, back to the original pixels.

        Pixels that were shifted out of view take their values from `lost`. This works for shifts alone, as a crop mixes
        pixels.
        """
        assert self.shifts is not None
        across, down = self.shifts.unbind(1)
        columns = self._mirrored(_along(values.shape[3], values.device) - across[:, None])
        return _take(values, _along(values.shape[2], values.device) - down[:, None], columns, lost)

    def _mirrored(self, columns: Tensor) -> Tensor:
        """Count columns (1 or N, W) from the other side where an image is mirrored."""
        return torch.where(self.boxes[:, 0, :1] < 0, columns.shape[1] - 1 - columns, columns)


def draw(settings: Training, count: int, seed: int, epoch: int, device: torch.device) -> Augmentation:
    """Draw the augmentation of `count` images for an epoch."""
    area = (settings.crop_area[0], settings.crop_area[1])
    boxes = draw_crops(rng(seed, "crop", epoch), count, area, settings.horizontal_flip)
    if area != (1, 1):
        return Augmentation(boxes.to(device), None)
    largest = settings.shift
    shifts = rng(seed, "shift", epoch).integers(-largest, largest + 1, (count, 2))
    return Augmentation(boxes.to(device), torch.from_numpy(shifts).to(device))


def draw_crops(generator: np.random.Generator, count: int, area: tuple[float, float], flip: bool) -> Tensor:
    """Draw a random resized crop for each of `count` images, mirrored half of the time where `flip`.

    area: smallest and largest share of the image's area. The aspect ratio is log-uniform in 3/4 to 4/3, and a side
    longer than the image is cut to it. Returns boxes (count, 2, 2), float32: for each axis, across and down, half the
    box's side and its centre, in coordinates in which the image reaches from -1 to 1. A negative side mirrors.
    """
    share = generator.uniform(*area, count)
    aspect = np.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), count))
    if area[0] == area[1] == 1:
        aspect[:] = 1
    width = np.minimum(np.sqrt(share * aspect), 1)
    height = np.minimum(np.sqrt(share / aspect), 1)
    across = generator.uniform(-1, 1, count) * (1 - width)
    down = generator.uniform(-1, 1, count) * (1 - height)
    mirror = np.where(generator.random(count) < 0.5, -1, 1) if flip else 1
    boxes = np.stack([np.stack([width * mirror, across], 1), np.stack([height, down], 1)], 1)
    return torch.from_numpy(boxes.astype(np.float32))


def crop(images: Tensor, boxes: Tensor, outside: str = "border") -> Tensor:
    """Cut a box (N, 2, 2) out of each image (N, C, H, W) and scale it bilinearly to the image's size.

    boxes: as `draw_crops` returns them.
    outside: what a box has beyond the image: `border`, the image's nearest pixel, or `zeros`.
    """
    boxes = boxes.to(images.device)
    # affine_grid, which can also rotate, took four times as long as this, and half of the sampler's time.
    grid = torch.stack(places(images, boxes), -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def places(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return where in its image each pixel of the boxes' crops lies, across and down, from -1 to 1: (N, H, W) each."""
    height, width = images.shape[2:]
    across, down = _centres(boxes[:, 0], width), _centres(boxes[:, 1], height)
    return across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)


def _centres(box: Tensor, size: int) -> Tensor:
    """Return the places (N, size) of the centres of `size` pixels along one axis of the boxes (N, 2)."""
    centres = (2 * torch.arange(size, device=box.device) + 1) / size - 1
    return box[:, :1] * centres + box[:, 1:]


def _along(size: int, device: torch.device) -> Tensor:
    """Return the numbers (1, size) of the rows or columns of an image."""
    return torch.arange(size, device=device)[None]


def _take(values: Tensor, rows: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """Return the values (N, C, H, W) at these rows (N, H) and columns (N, W) of each image, or those of `outside`, of
    the same shape, where there is no such row or column."""
    height, width = values.shape[2:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    image = torch.arange(len(values), device=values.device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    # The channels of a position lie together, in the layout of channels_last, and are taken together.
    pixels = values.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
    return torch.where(inside[:, None], pixels, outside)
