"""Common image corruptions, in the manner of Hendrycks & Dietterich (2019, arXiv 1903.12261), and the predictions of
structures on them. A corruption is no attack: it does not depend on a net."""

import io
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter

from sparring import progress, store
from sparring.device import choose, rng
from sparring.evaluation import predict
from sparring.layout import HERE, Layout, replacing
from sparring.params import Params
from sparring.params.names import CLEAN, CORRUPTIONS, STRENGTHS

SPLIT = "heldout"
COLUMNS = ["index", "split", "seed", "corruption", "strength", "label", "prediction", "confidence"]
# By strength, from 1 to 5. docs/method.md has the units.
NOISE = (0.04, 0.06, 0.08, 0.10, 0.12)
BLUR = (0.4, 0.6, 0.8, 1.0, 1.2)
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)
CONTRAST = (0.75, 0.60, 0.45, 0.30, 0.15)
JPEG = (80, 65, 50, 35, 20)
PIXELATE = (0.7, 0.5, 0.4, 0.35, 0.3)
BLUR_SIZE = 32  # the side of the images for which BLUR is given in pixels; it grows with the side


def corrupt(images: store.Images, name: str, strength: int, seed: int) -> np.ndarray:
    """Apply one of CORRUPTIONS at a strength from 1 to 5 to images (N, H, W, 3) uint8; returns the same shape and type.

    Noise is drawn from the seed and the image's index, and only scaled by the strength.
    """
    pixels = images.image.astype(np.float32) / 255
    corrupted = {
        "noise": lambda: pixels + NOISE[strength - 1] * _unit_noise(images, seed),
        "blur": lambda: _blur(pixels, BLUR[strength - 1]),
        "brightness": lambda: _brighten(pixels, BRIGHTNESS[strength - 1]),
        "contrast": lambda: _towards_mean(pixels, CONTRAST[strength - 1]),
        "jpeg": lambda: _map_images(images.image, lambda image: _jpeg(image, JPEG[strength - 1])),
        "pixelate": lambda: _pixelate(pixels, PIXELATE[strength - 1]),
    }[name]()
    return np.rint(255 * corrupted.clip(0, 1)).astype(np.uint8)


def _unit_noise(images: store.Images, seed: int) -> np.ndarray:
    shape = images.image.shape[1:]
    draws = [rng(seed, "corruption", "noise", int(index)).standard_normal(shape, np.float32) for index in images.index]
    return np.stack(draws) if draws else np.empty((0, *shape), np.float32)


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    scaled_sigma = sigma * pixels.shape[1] / BLUR_SIZE
    return gaussian_filter(pixels, (0, scaled_sigma, scaled_sigma, 0), mode="nearest")


def _brighten(pixels: np.ndarray, increase: float) -> np.ndarray:
    """Raise the value of HSV at the same hue and saturation; black, which has neither, becomes grey."""
    value = pixels.max(-1, keepdims=True)
    brighter = np.minimum(value + increase, 1)
    return np.where(value > 0, pixels * (brighter / np.maximum(value, 1 / 255)), brighter)


def _towards_mean(pixels: np.ndarray, share: float) -> np.ndarray:
    mean = pixels.mean((1, 2), keepdims=True)
    return mean + share * (pixels - mean)


def _map_images(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    changed = [change(image) for image in images]
    return (np.stack(changed) if changed else images).astype(np.float32) / 255


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality)
    with Image.open(file) as read:
        return np.asarray(read)


def _pixelate(pixels: np.ndarray, share: float) -> np.ndarray:
    """Shrink the sides to a share of their length by area means, then enlarge the images again without smoothing."""
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    size = pixels.shape[1]
    small = F.interpolate(tensor, size=int(size * share), mode="area") if len(tensor) else tensor
    large = F.interpolate(small, size=size, mode="nearest-exact") if len(tensor) else tensor
    return large.permute(0, 2, 3, 1).numpy()


def evaluate(params: Params, structure: str, layout: Layout = HERE) -> None:
    """Predict all held-out images, clean and under every corruption, with one structure, and write
    data/corruptions/<structure>.parquet. Raises InputError for a structure that is not in params.yaml."""
    params.structure(structure)
    device = choose(params)
    with progress.timed(layout, f"corruptions@{structure}", device) as done:
        clean = store.read(layout.clean / f"{SPLIT}.parquet")
        classes = clean.metadata["classes"]
        nets = {
            seed: predict.trained(params, layout, structure, seed, classes, device)
            for seed in params.seeds_of(structure)
        }
        parts = []
        kinds = [(CLEAN, 0), *((name, strength) for name in CORRUPTIONS for strength in STRENGTHS)]
        with progress.bar(f"corruptions@{structure}", len(clean) * len(kinds) * len(nets)) as advance:
            for name, strength in kinds:
                image = corrupt(clean, name, strength, params.seed) if strength else clean.image
                corrupted = store.Images(clean.index, clean.label, image)
                for seed, net in nets.items():
                    rows = predict.classified(net, corrupted, params.store.batch_size, device)
                    parts.append(rows.assign(split=SPLIT, seed=seed, corruption=name, strength=strength))
                    advance(len(rows))
        rows = pd.concat(parts, ignore_index=True)
        with replacing(layout.corruptions(structure)) as path:
            rows[COLUMNS].to_parquet(path, index=False)
        done(len(rows), f"{len(rows):,} predictions")
