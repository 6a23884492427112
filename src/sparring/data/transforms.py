"""This module draws the random transforms of structures, which change a batch of images beyond augmentation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.data.augmentation import crop, places
from sparring.data.draws import Draws
from sparring.params import Params
from sparring.params.transforms import Cutout, Erasing, Masking, MaskPadding, Noise, Padded, Transform

ATTEMPTS = 10  # of random erasing to draw a box that fits into the image, as in torchvision
SHORT_WORDS = 4096  # the most units of an image that 32 bits order at random with negligibly few ties

Draw = Callable[[Tensor], Tensor]
"""A draw of a transform maps images (N, 3, H, W) to the images that the net gets. Gradients pass through it."""


@dataclass(frozen=True)
class RandomTransform:
    """A transform of params.yaml, of which `draw` draws what it does to each image.

    word: the name of its section.  settings: that section.
    mean: the training images' mean colour in [0, 1], for `fill: mean`.
    """

    word: str
    settings: Transform
    mean: tuple[float, ...]

    @classmethod
    def of(cls, params: Params, structure: str, mean: tuple[float, ...]) -> "RandomTransform | None":
        """Return a structure's transform, or None where it has none."""
        settings = params.transform(structure)
        return None if settings is None else cls(params.structure(structure).transform, settings, mean)

    def draw(self, shape: tuple[int, ...], images: np.ndarray, seed: int, *purpose: str | int) -> Draw:
        """Draw for N images of one shape (3, H, W). Each image's draw depends on seed, purpose and its number alone.

        images: the images' numbers (N,), which identify them.
        """
        return DRAWN_BY[self.word](self.settings, self.mean, shape, images, Draws(seed, *purpose))


def _draw_mask(
    settings: Masking, mean: tuple[float, ...], shape: tuple[int, ...], images: np.ndarray, draws: Draws
) -> Draw:
    """Draw a mask that hides exactly `share` of each image's units, rounded to a whole number, but never all.

    A unit is a position with all its channels, one value of one channel, or a patch of `patch` × `patch` pixels, which
    may be cut off at the right and lower edge.
    """
    channels, height, width = shape
    side = settings.patch if settings.unit == "patch" else 1
    grid = (channels if settings.unit == "channel" else 1, -(-height // side), -(-width // side))
    units = math.prod(grid)
    hidden = min(round(settings.share * units), units - 1)
    visible = torch.from_numpy(~_random_units(draws, images, units, hidden)).view(-1, *grid)
    if side > 1:
        visible = visible.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]
    return _fill_hidden(visible, settings.fill, mean)


def _random_units(draws: Draws, images: np.ndarray, units: int, count: int) -> np.ndarray:
    """Choose exactly `count` units of each image at random: (N, units) bool."""
    if not count:
        return np.zeros((len(images), units), bool)
    dtype: Any = np.uint32 if units <= SHORT_WORDS else np.uint64
    words = draws.words(images, units, dtype)
    # The number of the unit takes the last bits of its word, so that no two words are equal.
    bits = dtype((1 << (units - 1).bit_length()) - 1)
    words = (words & ~bits) + np.arange(units).astype(dtype)
    return np.asarray(words <= np.partition(words, count - 1)[:, count - 1 : count])


def _fill_hidden(visible: Tensor, fill: str, mean: tuple[float, ...]) -> Draw:
    """Return a Draw that fills the pixels that are not `visible`, (N, 1 or 3, H, W) bool.  mean: the fill `mean`."""

    def apply(images: Tensor) -> Tensor:
        visible_pixels = visible.to(images.device, images.dtype)
        if fill == "zero":
            return images * visible_pixels
        colour = _colour(mean, images)
        return (images - colour) * visible_pixels + colour

    return apply


def _colour(mean: tuple[float, ...], images: Tensor) -> Tensor:
    return torch.tensor(mean, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)


def _draw_padding(
    settings: Padded, mean: tuple[float, ...], shape: tuple[int, ...], images: np.ndarray, draws: Draws
) -> Draw:
    """Draw for each image a place on a canvas whose sides are up to `most` pixels longer than the image on it.

    order pad: the whole image is placed on a canvas of H to H + most by W to W + most pixels, which is then scaled to
    H × W.  order resize: the image is scaled to H - most to H by W - most to W pixels and placed on a canvas of H × W
    (Xie et al., 2018, arXiv 1711.01991).  All lengths and places are uniform.
    """
    chance = draws.uniform(images, 4)
    axes = []
    for axis, size in enumerate((shape[2], shape[1])):  # across, then down
        largest = settings.most if settings.order == "pad" else min(settings.most, size - 1)
        longer = np.floor(chance[:, axis] * (largest + 1))
        place = np.floor(chance[:, 2 + axis] * (longer + 1))
        # One pixel of the result is `scale` pixels of the image: the canvas, or the image, was scaled by 1 / scale.
        scale = (size + longer) / size if settings.order == "pad" else size / (size - longer)
        placed_size = size if settings.order == "pad" else size - longer
        axes.append(np.stack([scale, scale - 1 - 2 * place / placed_size], 1))
    boxes = torch.from_numpy(np.stack(axes, 1).astype(np.float32))

    def apply(images: Tensor) -> Tensor:
        boxes_on_device = boxes.to(images.device)
        colour = _colour(mean, images) if settings.fill == "mean" else torch.zeros((), device=images.device)
        if settings.order == "pad" and settings.fill == "zero":
            return crop(images, boxes_on_device, "zeros")
        if settings.order == "pad":
            return crop(images - colour, boxes_on_device, "zeros") + colour
        across, down = places(images, boxes_on_device)
        inside = ((across.abs() < 1) & (down.abs() < 1))[:, None]
        return torch.where(inside, crop(images, boxes_on_device), colour)

    return apply


def _draw_mask_padding(
    settings: MaskPadding, mean: tuple[float, ...], shape: tuple[int, ...], images: np.ndarray, draws: Draws
) -> Draw:
    """Draw a mask, and a padding that is applied after it."""
    mask = _draw_mask(settings.mask, mean, shape, images, draws.part("mask"))
    padding = _draw_padding(settings.padding, mean, shape, images, draws.part("padding"))
    return lambda batch: padding(mask(batch))


def _draw_noise(
    settings: Noise, mean: tuple[float, ...], shape: tuple[int, ...], images: np.ndarray, draws: Draws
) -> Draw:
    """Draw Gaussian noise of standard deviation `std`, which is not clipped (Cohen et al., 2019, arXiv 1902.02918)."""
    # The noise is drawn in the order of channels_last, in which the images lie.
    channels, height, width = shape
    noise = torch.from_numpy(draws.normal(images, (height, width, channels))).permute(0, 3, 1, 2)
    return lambda batch: torch.add(batch, noise.to(batch.device), alpha=settings.std)


def _draw_cutout(
    settings: Cutout, mean: tuple[float, ...], shape: tuple[int, ...], images: np.ndarray, draws: Draws
) -> Draw:
    """Draw a square of side × side pixels around a random pixel; its part within the image is hidden (DeVries and
    Taylor, 2017, arXiv 1708.04552)."""
    _, height, width = shape
    centre = np.floor(draws.uniform(images, 2) * (height, width)).astype(np.int64)
    start = centre - settings.side // 2
    box = np.concatenate([start, start + settings.side], 1)
    return _fill_hidden(_outside(box, height, width), settings.fill, mean)


def _draw_erasing(
    settings: Erasing, mean: tuple[float, ...], shape: tuple[int, ...], images: np.ndarray, draws: Draws
) -> Draw:
    """Draw a box of random area and aspect ratio for a share `probability` of the images; the box is hidden (Zhong et
    al., 2020, arXiv 1708.04896). The rules are those of torchvision's RandomErasing, but for one box for each image."""
    _, height, width = shape
    chance = draws.uniform(images, 3 + 2 * ATTEMPTS)
    low, high = settings.area
    area = (low + (high - low) * chance[:, 3 : 3 + ATTEMPTS]) * height * width
    low, high = np.log(settings.aspect)
    aspect = np.exp(low + (high - low) * chance[:, 3 + ATTEMPTS :])
    sides = np.stack([np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))], -1)
    fits: np.ndarray = np.logical_and(sides[..., 0] < height, sides[..., 1] < width)
    first = fits.argmax(1)
    side = np.where(fits.any(1, keepdims=True), sides[np.arange(len(images)), first], 0)
    side *= chance[:, :1] < settings.probability
    start = np.floor(chance[:, 1:3] * (np.array((height, width)) - side + 1))
    box = np.concatenate([start, start + side], 1).astype(np.int64)
    return _fill_hidden(_outside(box, height, width), settings.fill, mean)


def _outside(box: np.ndarray, height: int, width: int) -> Tensor:
    """Mark the pixels (N, 1, H, W) outside each image's box (N, 4): top, left, bottom, right, the last two excluded."""
    top, left, bottom, right = (torch.from_numpy(box[:, side]).view(-1, 1, 1, 1) for side in range(4))
    down, across = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    return ~((down >= top) & (down < bottom) & (across >= left) & (across < right))


DRAWN_BY: dict[str, Callable[[Any, tuple[float, ...], tuple[int, ...], np.ndarray, Draws], Draw]] = {
    "mask": _draw_mask,
    "padding": _draw_padding,
    "mask_padding": _draw_mask_padding,
    "noise": _draw_noise,
    "cutout": _draw_cutout,
    "erasing": _draw_erasing,
    "resizing": _draw_padding,
}
