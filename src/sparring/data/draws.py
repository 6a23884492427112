"""Random numbers of an image that do not depend on the batch in which it comes."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from sparring.device import rng

LARGEST = 1 - 2.0**-24  # the largest number of 32 bits below 1


class Draws:
    """Random numbers that are a function of (seed, what for, image) alone, for a batch of images at a time.

    They are those of Philox (Salmon et al., 2011), a counter-based generator: its key stands for seed and purpose, and
    a part of its counter is the image's number.
    """

    def __init__(self, seed: int, *what: str | int) -> None:
        self._made_of = (seed, *what)
        self._bits = np.random.Philox(key=rng(seed, *what).integers(2**64, size=2, dtype=np.uint64))
        self._state = self._bits.state

    def part(self, name: str) -> "Draws":
        """Other numbers of the same images, independent of these."""
        seed, *what = self._made_of
        return Draws(int(seed), *what, name)

    def words(self, images: np.ndarray, count: int, dtype: type = np.uint64) -> np.ndarray:
        """Uniform random integers (N, count) of the unsigned `dtype`, for images (N,) by their numbers."""
        long = -(-count * np.dtype(dtype).itemsize // 8)
        words = np.empty((len(images), long), np.uint64)
        for row in self._rows(images):
            words[row] = self._bits.random_raw(long)
        return words.view(dtype)[:, :count]

    def uniform(self, images: np.ndarray, count: int) -> np.ndarray:
        """Numbers (N, count) from 0 to below 1, float64."""
        return (self.words(images, count) >> np.uint64(11)) * 2.0**-53

    def normal(self, images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal numbers (N, *shape), float32, of an absolute value below 5.5: numpy's own take twice as
        long."""
        words = self.words(images, math.prod(shape), np.uint32).view(np.int32)
        uniform = torch.from_numpy(words.astype(np.float32)).add_(0.5).mul_(2.0**-31)  # from -1 to 1
        uniform.clamp_(-LARGEST, LARGEST)  # rounding has made some of them 1, whose normal number is infinite
        return uniform.erfinv_().mul_(math.sqrt(2)).numpy().reshape(len(images), *shape)

    def _rows(self, images: np.ndarray) -> Iterator[int]:
        """Each image's row, with the generator set to where that image's numbers begin."""
        counter = self._state["state"]["counter"]
        for row, image in enumerate(images.tolist()):
            counter[2] = image  # an image has 2^128 numbers of its own
            self._bits.state = self._state
            yield row
