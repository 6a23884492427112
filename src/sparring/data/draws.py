"""Random numbers of an image that do not depend on the batch in which it comes."""

from collections.abc import Iterator

import numpy as np

from sparring.device import rng


class Draws:
    """Random numbers that are a function of (seed, what for, image) alone, for a batch of images at a time.

    They are those of Philox (Salmon et al., 2011), a counter-based generator: its key stands for seed and purpose, and
    a part of its counter is the image's number.
    """

    def __init__(self, seed: int, *what: str | int) -> None:
        self._made_of = (seed, *what)
        self._bits = np.random.Philox(key=rng(seed, *what).integers(2**64, size=2, dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
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
        """Standard normal numbers (N, *shape), float32."""
        numbers = np.empty((len(images), *shape), np.float32)
        for row in self._rows(images):
            self._generator.standard_normal(out=numbers[row], dtype=np.float32)
        return numbers

    def _rows(self, images: np.ndarray) -> Iterator[int]:
        """Each image's row, with the generator set to where that image's numbers begin."""
        counter = self._state["state"]["counter"]
        for row, image in enumerate(images.tolist()):
            counter[2] = image  # an image has 2^128 numbers of its own
            self._bits.state = self._state
            yield row
