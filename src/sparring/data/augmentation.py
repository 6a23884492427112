"""How training images are augmented: cropped or shifted, and mirrored."""

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
    """The augmentation of N images.

    boxes: (N, 2, 2), the crops, as `draw_crops` has them.
    shifts: (N, 2), by how many whole pixels, across and down, the net looks beside the image; None where images are
    cropped. Where there are shifts, a box cuts nothing off and only mirrors.
    """

    boxes: Tensor
    shifts: Tensor | None

    def of(self, rows: Tensor) -> "Augmentation":
        """That of some of the images."""
        return Augmentation(self.boxes[rows], None if self.shifts is None else self.shifts[rows])

    def apply(self, images: Tensor) -> Tensor:
        """The images (N, C, H, W) as the net gets them; what a shift lets in is 0."""
        if self.shifts is None:
            return crop(images, self.boxes)
        across, down = self.shifts.unbind(1)
        columns = self._mirrored(_along(images.shape[3], images.device)) + across[:, None]
        return _take(images, _along(images.shape[2], images.device) + down[:, None], columns, torch.zeros_like(images))

    def undo(self, values: Tensor, lost: Tensor) -> Tensor:
        """Values (N, C, H, W), one a pixel that the net gets, back at the pixels of the images that they belong to.
        What was shifted out of sight is taken from `lost`. For shifts alone: a crop mixes pixels."""
        assert self.shifts is not None
        across, down = self.shifts.unbind(1)
        columns = self._mirrored(_along(values.shape[3], values.device) - across[:, None])
        return _take(values, _along(values.shape[2], values.device) - down[:, None], columns, lost)

    def _mirrored(self, columns: Tensor) -> Tensor:
        """Columns (1 or N, W) counted from the other side where an image is mirrored."""
        return torch.where(self.boxes[:, 0, :1] < 0, columns.shape[1] - 1 - columns, columns)


def draw(settings: Training, count: int, seed: int, epoch: int, device: torch.device) -> Augmentation:
    """The augmentation of an epoch, for each of `count` images."""
    area = (settings.crop_area[0], settings.crop_area[1])
    boxes = draw_crops(rng(seed, "crop", epoch), count, area, settings.horizontal_flip)
    if area != (1, 1):
        return Augmentation(boxes.to(device), None)
    most = settings.shift
    shifts = rng(seed, "shift", epoch).integers(-most, most + 1, (count, 2))
    return Augmentation(boxes.to(device), torch.from_numpy(shifts).to(device))


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


def crop(images: Tensor, boxes: Tensor, outside: str = "border") -> Tensor:
    """Cut its box (N, 2, 2) out of each image (N, C, H, W) and scale it bilinearly to the image's size.

    outside: what a box that reaches beyond the image finds there: `border`, its nearest pixel, or `zeros`.
    """
    boxes = boxes.to(images.device)
    # affine_grid, which can also rotate, took four times as long as this, and half of the sampler's time.
    grid = torch.stack(places(images, boxes), -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def places(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel of the boxes comes to lie in its image, across and down: (N, H, W) each."""
    height, width = images.shape[2:]
    across, down = _centres(boxes[:, 0], width), _centres(boxes[:, 1], height)
    return across[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)


def _centres(box: Tensor, size: int) -> Tensor:
    """Where the centres of `size` pixels come to lie (N, size) along one axis of the boxes (N, 2)."""
    centres = (2 * torch.arange(size, device=box.device) + 1) / size - 1
    return box[:, :1] * centres + box[:, 1:]


def _along(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device)[None]


def _take(values: Tensor, rows: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """The values (N, C, H, W) at these rows (N, H) and columns (N, W) of each image; those of `outside`, of the same
    shape, where there is no such row or column."""
    height, width = values.shape[2:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    image = torch.arange(len(values), device=values.device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    # The channels of a position lie together, in the layout of channels_last, and are taken together.
    found = values.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
    return torch.where(inside[:, None], found, outside)
