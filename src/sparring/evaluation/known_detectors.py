"""Two known detectors of adversarial images, to which a structure's own is compared."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.ndimage import median_filter
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sparring import store
from sparring.device import channels_last, rng
from sparring.layout import Layout
from sparring.models import classifier, networks
from sparring.models.classifier import Classifier
from sparring.params import Params
from sparring.params.errors import InputError

BITS, SIDES = range(1, 8), (2, 3)

Squeeze = Callable[[np.ndarray], np.ndarray]


def read_attacked(path: Any, clean: store.Images, source: str) -> store.Images:
    """Read a store of attacked images. Raises InputError where they are not of these clean images and this net."""
    images = store.read(path, ("image", "linf"))
    store.check_rows(clean, images, path)
    store.check_source(images, source, path)
    return images


# The known detectors


def fit_known_detectors(
    params: Params,
    layout: Layout,
    pretrained: Classifier,
    source: str,
    clean: dict[str, store.Images],
    device: torch.device,
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], dict[str, Any]]:
    """Fit both detectors. Returns a function from images to scores by the detector's name, and facts on the fit.

    The Gaussians are fitted on clean training images. The logistic regression and the choice of squeezers use the
    validation images, clean and under every seen attack: the net treats images that it was trained on differently.
    Without validation images, a tenth of the training images takes their place.
    """
    size = params.store.batch_size
    net = channels_last(networks.frozen(pretrained), device)  # scores are no predictions: folded, it is faster
    split = "validation" if len(clean["validation"]) else "train"
    image_sets, gaussian_images = _fitting_images(params, layout, source, clean, split)
    adversarial = np.repeat([False, True], [len(image_sets[0]), sum(map(len, image_sets[1:]))])
    squeezers: list[Squeeze] = [partial(fewer_bits, bits=bits) for bits in BITS]
    squeezers += [partial(median, side=side) for side in SIDES]
    distances = mahalanobis(features(net, gaussian_images.image, size, device)[1], gaussian_images.label)
    all_distances, all_moves = [], []
    for images in image_sets:
        plain, means = features(net, images, size, device)
        all_distances.append(distances(means))
        all_moves.append(squeezing_distances(net, images, plain, squeezers, size, device))
    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    regression.fit(np.concatenate(all_distances), adversarial)
    bits, side = choose_squeezers(np.concatenate(all_moves), adversarial)
    chosen_squeezers: list[Squeeze] = [partial(fewer_bits, bits=bits), partial(median, side=side)]

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        plain, means = features(net, images, size, device)
        return {
            "mahalanobis": regression.decision_function(distances(means)),
            "squeezing": squeezing_distances(net, images, plain, chosen_squeezers, size, device).max(1),
        }

    facts = {"bits": bits, "median": side, "fit": len(image_sets[0]), "split": split}
    return scores, facts | {"gaussians": len(gaussian_images)}


def _fitting_images(
    params: Params, layout: Layout, source: str, clean: dict[str, store.Images], split: str
) -> tuple[list[np.ndarray], store.Images]:
    """Return the images of `split` for the fit, first clean and then those that each seen attack changed, and the clean
    images for the Gaussians."""
    pool, gaussian_images = clean[split], clean["train"]
    fitting_rows = np.arange(len(pool))
    if split == "train":
        order = rng(params.seed, "detection", "fit").permutation(len(pool))
        fitting_rows, other_rows = np.split(order, [-(-len(pool) // 10)])
        gaussian_images = pool[other_rows]
    image_sets = [pool.image[fitting_rows]]
    for attack in params.attacks:
        attacked = read_attacked(layout.adversarial / attack / f"{split}.parquet", pool, source)[fitting_rows]
        changed = attacked.columns["linf"] > 0
        if changed.any():
            image_sets.append(attacked.image[changed])
    if len(image_sets) == 1:
        raise InputError(
            f"params.yaml: data.{split} is {len(pool)}; no attack changed any of the {len(fitting_rows)} images that "
            "known detectors are fitted on; use more"
        )
    return image_sets, gaussian_images


@torch.no_grad()
def features(
    net: Classifier, stored: np.ndarray, size: int, device: torch.device
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the net's softmax (N, classes) of stored images (N, H, W, C), N above 0, and of each of its feature maps
    the mean over all positions, (N, channels)."""
    softmax: list[np.ndarray] = []
    means: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(stored), size):
        maps = net.eval().maps(classifier.to_images(stored[start : start + size], device))
        softmax.append(net.classify(maps).softmax(1).cpu().numpy())
        for name in classifier.layers(maps):
            means.setdefault(name, []).append(maps[name].mean((2, 3)).cpu().numpy())
    return np.concatenate(softmax), [np.concatenate(parts) for parts in means.values()]


def mahalanobis(features: list[np.ndarray], label: np.ndarray) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Fit a Gaussian for each class, with one covariance for all, to each layer's features (N, channels) of clean
    images (Lee et al., 2018, arXiv 1807.03888; the covariance with Ledoit and Wolf's shrinkage, as channels can be
    dead).

    Returns a function from features to squared distances (N, layers) to the nearest class.
    """
    classes, class_number = np.unique(label, return_inverse=True)
    gaussians = []
    for layer in features:
        means = np.stack([layer[class_number == number].mean(0) for number in range(len(classes))])
        covariance = LedoitWolf(assume_centered=True).fit(layer - means[class_number])
        gaussians.append((means, covariance.get_precision()))

    def distances(features: list[np.ndarray]) -> np.ndarray:
        layers = [
            cdist(layer, means, "mahalanobis", VI=precision).min(1) ** 2
            for layer, (means, precision) in zip(features, gaussians, strict=True)
        ]
        return np.stack(layers, 1)

    return distances


def fewer_bits(images: np.ndarray, *, bits: int) -> np.ndarray:
    """Round images, in levels from 0 to 255, to 2^bits levels over the same range."""
    top = np.float32(2**bits - 1)
    return np.rint(images.astype(np.float32) / 255 * top) / top * 255


def median(images: np.ndarray, *, side: int) -> np.ndarray:
    """Replace each pixel of images (N, H, W, C) by the median of the side × side pixels around it."""
    return median_filter(images.astype(np.float32), (1, side, side, 1))


def squeezing_distances(
    net: nn.Module, stored: np.ndarray, plain: np.ndarray, squeezers: Sequence[Squeeze], size: int, device: torch.device
) -> np.ndarray:
    """Return the L1 distances (N, squeezers), from 0 to 2, by which each squeezer moves the net's softmax from `plain`
    (N, classes) (Xu et al., 2018, arXiv 1704.01155)."""
    parts = [np.empty((0, len(squeezers)), np.float32)]
    for start in range(0, len(stored), size):
        batch, before = stored[start : start + size], plain[start : start + size]
        after = [classifier.predict(net, squeeze(batch), size, device) for squeeze in squeezers]
        parts.append(np.abs(np.stack(after, 1) - before[:, None]).sum(2))
    return np.concatenate(parts)


def choose_squeezers(distances: np.ndarray, adversarial: np.ndarray) -> tuple[int, int]:
    """Choose the (bits, side) whose larger distance separates adversarial from clean images best, by AUROC.

    distances: (N, BITS then SIDES).  adversarial: (N,) bool.
    """
    areas = {
        (bits, side): roc_auc_score(adversarial, distances[:, [column, len(BITS) + other]].max(1))
        for column, bits in enumerate(BITS)
        for other, side in enumerate(SIDES)
    }
    return max(areas, key=lambda key: areas[key])
