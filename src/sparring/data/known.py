"""This module reads the data sets of libraries: the digits of scikit-learn, and some that torchvision can download."""

import tarfile
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException

import numpy as np

from sparring.data.sources import BATCH, Encoded, Source, location
from sparring.params.errors import InputError, reason
from sparring.params.sections import Data

DOWNLOADS = "data/downloads"
# data.source → the class in torchvision.datasets.
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def digits(data: Data) -> Source:
    """Read the digits of scikit-learn: images of 8 × 8 pixels of 17 levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    label = loaded.target.astype(np.int64)
    names = [str(name) for name in loaded.target_names]
    return Source("data.source digits", label, np.zeros(len(label), bool), names, None, partial(in_batches, pixels))


def of_torchvision(data: Data, download: bool) -> Source:
    """Read a data set of TORCHVISION from `data.path`, or else from DOWNLOADS.

    Raises InputError where it is absent and cannot be, or must not be, downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, TORCHVISION[data.source])
    folder = location(data.path or DOWNLOADS)
    try:
        train, test = (kind(root=str(folder), train=is_train, download=download) for is_train in (True, False))
    except (RuntimeError, OSError, EOFError, HTTPException, tarfile.TarError) as error:
        key = f"data.source {data.source}"
        if not download:
            raise InputError(
                f"{key}: {folder} does not have it ({reason(error)}); torchvision.datasets.{kind.__name__} puts it "
                "there with download=True"
            ) from error
        address = getattr(kind, "url", None) or getattr(kind, "mirrors", [kind.__name__])[0]
        raise InputError(
            f"{key}: no download of {address} into {folder} ({reason(error)}); put the "
            f"archive there yourself, or read a copy with data.source parquet or folder"
        ) from error
    label = np.array([*train.targets, *test.targets], np.int64)
    is_heldout = np.arange(len(label)) >= len(train.targets)
    read = partial(in_batches, np.concatenate([np.asarray(train.data), np.asarray(test.data)]))
    return Source(f"data.source {data.source}", label, is_heldout, [str(name) for name in train.classes], None, read)


def in_batches(pixels: np.ndarray, rows: np.ndarray) -> Iterator[list[tuple[str, Encoded]]]:
    """Yield the pixels (H, W[, 3]) of these rows in batches. A source's `read` is this with the first argument set."""
    for start in range(0, len(rows), BATCH):
        yield [(f"image {row}", pixels[row]) for row in rows[start : start + BATCH]]
