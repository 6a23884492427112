"""This module draws random numbers for an image that do not depend on the rest of its batch."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from sparring.device import rng

LARGEST = 1 - 2.0**-24  # the largest number of 32 bits below 1


class Draws:
    """This class draws random numbers that depend on (seed, purpose, image) alone, for a batch of images at a time.

    It uses Philox (Salmon et al., 2011), a counter-based generator: its key is a hash of seed and purpose, and a part
    of its counter is the image's number.
    """

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._seed_and_purpose = (seed, *purpose)
        self._bits = np.random.Philox(key=rng(seed, *purpose).integers(2**64, size=2, dtype=np.uint64))
        self._state = self._bits.state

    def part(self, name: str) -> "Draws":
        """Return other draws for the same images, independent of these."""
        seed, *purpose = self._seed_and_purpose
        return Draws(int(seed), *purpose, name)

    def words(self, images: np.ndarray, count: int, dtype: type = np.uint64) -> np.ndarray:
        """Draw uniform random integers (N, count) of the unsigned `dtype`, for images (N,) by their numbers."""
        long = -(-count * np.dtype(dtype).itemsize // 8)
        words = np.empty((len(images), long), np.uint64)
        for row in self._rows(images):
            words[row] = self._bits.random_raw(long)
        return words.view(dtype)[:, :count]

    def uniform(self, images: np.ndarray, count: int) -> np.ndarray:
        """Draw uniform numbers (N, count) from 0 to below 1, float64."""
        return (self.words(images, count) >> np.uint64(11)) * 2.0**-53

    def normal(self, images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Draw standard normal numbers (N, *shape), float32, of an absolute value below 5.5.

        The inverse of the normal distribution makes them of uniform ones, in half the time that numpy's own take.
        """
        words = self.words(images, math.prod(shape), np.uint32).view(np.int32)
        uniform = torch.from_numpy(words.astype(np.float32)).add_(0.5).mul_(2.0**-31)  # from -1 to 1
        uniform.clamp_(-LARGEST, LARGEST)  # Rounding has made some of them 1, whose normal number is infinite.
        return uniform.erfinv_().mul_(math.sqrt(2)).numpy().reshape(len(images), *shape)

    def _rows(self, images: np.ndarray) -> Iterator[int]:
        """Yield each image's row, with the generator set to where that image's numbers begin."""
        counter = self._state["state"]["counter"]
        for row, image in enumerate(images.tolist()):
            counter[2] = image  # Each image has 2^128 numbers of its own.
            self._bits.state = self._state
            yield row
