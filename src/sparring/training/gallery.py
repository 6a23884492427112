"""The gallery holds every version of every training image, in memory or streamed from the stores."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparring import distributed, store
from sparring.device import rng
from sparring.layout import Layout
from sparring.models import classifier
from sparring.params import Params
from sparring.params.errors import InputError


class Batch(NamedTuple):
    """Holds N training images: their rows (N,), the images (n, 3, H, W), of which a process has only its share n,
    the labels (N,), and which images are adversarial (N,)."""

    rows: Tensor
    images: Tensor
    labels: Tensor
    adversarial: Tensor


class Gallery:
    """Holds every version of every training image in memory, as stored. Version 0 is clean; each other is one attack's.

    image: (V, N, H, W, C) uint8, or float16 where an attack is stored so. It is on the device, or on the CPU where it
    would take more than half of a GPU's free memory.  label: (N,).
    adversarial: (V, N), False also where an attack changed nothing.
    """

    def __init__(
        self, image: np.ndarray, clean: store.Images, attacked: list[store.Images], device: torch.device
    ) -> None:
        """image: as above.  clean, attacked: the stores' other columns, of which label and linf are used."""
        fits = device.type != "cuda" or image.nbytes <= torch.cuda.mem_get_info(device)[0] / 2
        self.image = torch.from_numpy(image).to(device if fits else "cpu")
        self._set_labels(clean, attacked, device)

    def _set_labels(self, clean: store.Images, attacked: list[store.Images], device: torch.device) -> None:
        changed = np.stack([np.zeros(len(clean), bool), *(images.columns["linf"] > 0 for images in attacked)])
        self.label = torch.from_numpy(clean.label).to(device)
        self.adversarial = torch.from_numpy(changed).to(device)
        self.device = device

    def order(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Return the rows in the order in which an epoch visits them, in one window or several."""
        return [rng(seed, "order", epoch).permutation(len(self.label))]

    def batches(self, windows: list[np.ndarray], version: np.ndarray, size: int, skip: int) -> Iterator[Batch]:
        """Yield the epoch's batches of `size` images, but for the first `skip`.  version: each image's version (N,)."""
        version_tensor, visits = (
            torch.from_numpy(array).to(self.image.device) for array in (version, np.concatenate(windows))
        )
        for rows in visits.tensor_split(batch_stops(len(visits), size)[:-1].tolist())[skip:]:
            yield self.batch(version_tensor[rows], rows)

    def batch(self, version: Tensor, rows: Tensor) -> Batch:
        """Return these images (N,) in these versions (N,)."""
        images = classifier.to_images(self.image[distributed.mine(version), distributed.mine(rows)], self.device)
        return Batch(rows, images, self.label[rows], self.adversarial[version, rows])


class Stream(Gallery):
    """A gallery whose versions do not fit into memory: it reads row groups, one window of images ahead.

    An epoch goes from window to window. It visits the images of a window in a random order, each in the version that
    was drawn for it. Two windows take `budget` bytes at most, but a window has at least one row group. A window has no
    more than an eighth of the images, so that reading overlaps with training. Its row groups are drawn evenly from the
    whole store: where that is sorted by class, as from folders, neighbouring row groups are of the same class.
    """

    def __init__(
        self,
        versions: list[store.RowGroups],
        clean: store.Images,
        attacked: list[store.Images],
        budget: float,
        device: torch.device,
    ) -> None:
        """versions: the stores' images.  clean, attacked: the stores' other columns.

        Raises InputError where the stores' row groups differ.
        """
        self._set_labels(clean, attacked, device)
        self._versions, first = versions, versions[0]
        for other in versions[1:]:
            if not np.array_equal(other.rows, first.rows):
                raise InputError(f"{other.path} has other row groups than {first.path}; delete it and run `dvc repro`")
        self._rows, self._starts = first.rows, first.starts
        self._dtype = np.result_type(*(version.dtype for version in versions))
        bytes_a_group = int(first.rows.max() * np.prod(first.shape)) * self._dtype.itemsize
        groups = max(1, min(int(budget / 2) // bytes_a_group, len(first.rows) // 8))
        self._windows = -(-len(first.rows) // groups)

    def order(self, seed: int, epoch: int) -> list[np.ndarray]:
        chance = rng(seed, "groups", epoch)
        # Of `_windows` neighbouring row groups, each window gets one.
        neighbours = range(0, len(self._rows), self._windows)
        parts = [chance.permutation(np.arange(len(self._rows))[start : start + self._windows]) for start in neighbours]
        windows = []
        for number in range(self._windows):
            groups = [part[number] for part in parts if number < len(part)]
            rows = [self._starts[group] + np.arange(self._rows[group]) for group in groups]
            windows.append(rng(seed, "order", epoch, number).permutation(np.concatenate(rows)))
        return windows

    def batches(self, windows: list[np.ndarray], version: np.ndarray, size: int, skip: int) -> Iterator[Batch]:
        visits, ends = np.concatenate(windows), np.cumsum([len(window) for window in windows])
        stops = batch_stops(len(visits), size)
        start = stops[skip - 1] if skip else 0
        leftover = np.empty((0, *self._versions[0].shape), self._dtype)  # of a window that did not fill its last batch
        first = int(np.searchsorted(ends, start, "right"))
        with ThreadPoolExecutor(1) as reader:
            pending = [reader.submit(self._read, window, version[window]) for window in windows[first : first + 1]]
            for number, end in enumerate(ends[first:], first + 1):
                images = pending.pop().result()
                pending = [
                    reader.submit(self._read, window, version[window]) for window in windows[number : number + 1]
                ]
                used = start + len(leftover) - (end - len(images))
                for stop in stops[(stops > start) & (stops <= end)]:
                    batch_rows, more = visits[start:stop], stop - start - len(leftover)
                    levels = np.concatenate([leftover, images[used : used + more]])
                    start, used, leftover = stop, used + more, leftover[:0]
                    rows, versions = (
                        torch.from_numpy(array).to(self.device) for array in (batch_rows, version[batch_rows])
                    )
                    pixels = classifier.to_images(distributed.mine(levels), self.device)
                    yield Batch(rows, pixels, self.label[rows], self.adversarial[versions, rows])
                leftover = np.concatenate([leftover, images[used:]])

    def _read(self, rows: np.ndarray, version: np.ndarray) -> np.ndarray:
        """Read the images (N, H, W, C) of these rows, each in its version. Read a row group once for each version."""
        images = np.empty((len(rows), *self._versions[0].shape), self._dtype)
        groups = np.searchsorted(self._starts, rows, "right") - 1
        keys = groups * len(self._versions) + version
        places = np.argsort(keys, kind="stable")
        unique_keys, starts = np.unique(keys[places], return_index=True)
        for key, positions in zip(unique_keys, np.split(places, starts[1:]), strict=True):
            group, number = divmod(int(key), len(self._versions))
            images[positions] = self._versions[number].read(group)[rows[positions] - self._starts[group]]
        return images


def load_gallery(params: Params, layout: Layout, attacks: list[str], source: str, device: torch.device) -> Gallery:
    """Load the training images, clean and under these attacks: in memory where store.memory_budget allows, else
    streamed.

    source: digest of the net that the attacks were made against. Raises InputError where they were made against
    another, or where a store is missing, damaged or of other images.
    """
    paths = [layout.clean / "train.parquet", *(layout.adversarial / name / "train.parquet" for name in attacks)]
    clean, attacked = store.read(paths[0], ()), []
    for path in paths[1:]:
        images = store.read(path, ("linf",))
        store.check_rows(clean, images, path)
        store.check_source(images, source, path)
        attacked.append(images)
    versions = [store.RowGroups(path) for path in paths]
    dtype = np.result_type(*(version.dtype for version in versions))
    shape = (len(paths), len(clean), *versions[0].shape)
    if math.prod(shape) * dtype.itemsize > params.store.memory_budget * 1e9:
        return Stream(versions, clean, attacked, params.store.memory_budget * 1e9, device)
    image = np.empty(shape, dtype)  # filled by row group, so that no image is in memory twice
    for pixels, version in zip(image, versions, strict=True):
        for number, start in enumerate(version.starts):
            pixels[start : start + version.rows[number]] = version.read(number)
    return Gallery(image, clean, attacked, device)


def batch_stops(count: int, size: int) -> np.ndarray:
    """Return where the batches of an epoch of `count` visits end: after every `size` of them, and at `count`. A last
    batch with fewer than `distributed.LEAST` images for each process joins the one before, as BatchNorm cannot average
    the 1×1 map of a single image."""
    stops = np.append(np.arange(size, count, size), count)
    short = len(stops) > 1 and stops[-1] - stops[-2] < distributed.LEAST * distributed.size()
    return np.delete(stops, -2) if short else stops
