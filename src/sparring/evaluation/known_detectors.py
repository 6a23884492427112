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


def attacked_versions(path: Any, clean: store.Images, source: str) -> store.Images:
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
    """Both, as functions from images to their scores by name, and what was chosen.

    The Gaussians are fitted on clean training images. The logistic regression and the choice of squeezers see the
    validation images, clean and as every seen attack changed them, as the net treats images that it was trained on
    otherwise than new ones. Without validation images, a tenth of the training images takes their place.
    """
    size = params.store.batch_size
    net = channels_last(networks.frozen(pretrained), device)  # scores are no predictions: folded, it is faster
    split = "validation" if len(clean["validation"]) else "train"
    shown, rest = _fitting_images(params, layout, source, clean, split)
    adversarial = np.repeat([False, True], [len(shown[0]), sum(map(len, shown[1:]))])
    squeezers: list[Squeeze] = [partial(fewer_bits, bits=bits) for bits in BITS]
    squeezers += [partial(median, side=side) for side in SIDES]
    distances = mahalanobis(features(net, rest.image, size, device)[1], rest.label)
    far, moved = [], []
    for images in shown:
        plain, means = features(net, images, size, device)
        far.append(distances(means))
        moved.append(squeezed(net, images, plain, squeezers, size, device))
    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    regression.fit(np.concatenate(far), adversarial)
    bits, side = choose_squeezers(np.concatenate(moved), adversarial)
    chosen: list[Squeeze] = [partial(fewer_bits, bits=bits), partial(median, side=side)]

    def scores(images: np.ndarray) -> dict[str, np.ndarray]:
        plain, means = features(net, images, size, device)
        return {
            "mahalanobis": regression.decision_function(distances(means)),
            "squeezing": squeezed(net, images, plain, chosen, size, device).max(1),
        }

    return scores, {"bits": bits, "median": side, "fit": len(shown[0]), "split": split, "gaussians": len(rest)}


def _fitting_images(
    params: Params, layout: Layout, source: str, clean: dict[str, store.Images], split: str
) -> tuple[list[np.ndarray], store.Images]:
    """The images of `split` that detectors see, clean and then as each seen attack changed them, and the clean images
    for the Gaussians."""
    pool, rest = clean[split], clean["train"]
    fitted = np.arange(len(pool))
    if split == "train":
        order = rng(params.seed, "detection", "fit").permutation(len(pool))
        fitted, others = np.split(order, [-(-len(pool) // 10)])
        rest = pool[others]
    shown = [pool.image[fitted]]
    for attack in params.attacks:
        found = attacked_versions(layout.adversarial / attack / f"{split}.parquet", pool, source)[fitted]
        changed = found.columns["linf"] > 0
        if changed.any():
            shown.append(found.image[changed])
    if len(shown) == 1:
        raise InputError(
            f"params.yaml: data.{split} is {len(pool)}; no attack changed any of the {len(fitted)} images that "
            "known detectors are fitted on; use more"
        )
    return shown, rest


@torch.no_grad()
def features(
    net: Classifier, stored: np.ndarray, size: int, device: torch.device
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of images (N, H, W, C) as stored, N above 0: the net's softmax (N, classes), and the means over positions of its
    maps, (N, channels) each."""
    softmax: list[np.ndarray] = []
    means: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(stored), size):
        maps = net.eval().maps(classifier.to_images(stored[start : start + size], device))
        softmax.append(net.classify(maps).softmax(1).cpu().numpy())
        for name in classifier.layers(maps):
            means.setdefault(name, []).append(maps[name].mean((2, 3)).cpu().numpy())
    return np.concatenate(softmax), [np.concatenate(found) for found in means.values()]


def mahalanobis(features: list[np.ndarray], label: np.ndarray) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Fit a Gaussian for each class, with one covariance for all, to each layer's features (N, channels) of clean
    images (Lee et al., 2018, arXiv 1807.03888; the covariance with Ledoit and Wolf's shrinkage, as channels can be
    dead).

    Returns a function from features to squared distances (N, layers) to the nearest class.
    """
    classes, place = np.unique(label, return_inverse=True)
    fitted = []
    for found in features:
        means = np.stack([found[place == number].mean(0) for number in range(len(classes))])
        shared = LedoitWolf(assume_centered=True).fit(found - means[place])
        fitted.append((means, shared.get_precision()))

    def distances(features: list[np.ndarray]) -> np.ndarray:
        layers = [
            cdist(found, means, "mahalanobis", VI=precision).min(1) ** 2
            for found, (means, precision) in zip(features, fitted, strict=True)
        ]
        return np.stack(layers, 1)

    return distances


def fewer_bits(images: np.ndarray, *, bits: int) -> np.ndarray:
    """Images in levels from 0 to 255, in 2^bits levels."""
    top = np.float32(2**bits - 1)
    return np.rint(images.astype(np.float32) / 255 * top) / top * 255


def median(images: np.ndarray, *, side: int) -> np.ndarray:
    """Images (N, H, W, C), each pixel the median of side × side around it."""
    return median_filter(images.astype(np.float32), (1, side, side, 1))


def squeezed(
    net: nn.Module, stored: np.ndarray, plain: np.ndarray, squeezers: Sequence[Squeeze], size: int, device: torch.device
) -> np.ndarray:
    """How far each squeezer moves the net's softmax from `plain` (N, classes), in L1: (N, squeezers), 0 to 2 (Xu et
    al., 2018, arXiv 1704.01155)."""
    parts = [np.empty((0, len(squeezers)), np.float32)]
    for start in range(0, len(stored), size):
        batch, before = stored[start : start + size], plain[start : start + size]
        after = [classifier.predict(net, squeeze(batch), size, device) for squeeze in squeezers]
        parts.append(np.abs(np.stack(after, 1) - before[:, None]).sum(2))
    return np.concatenate(parts)


def choose_squeezers(lengths: np.ndarray, adversarial: np.ndarray) -> tuple[int, int]:
    """The (bits, side) whose larger length tells adversarial from clean images best, by AUROC; the first of equals.

    lengths: (N, BITS then SIDES).  adversarial: (N,) bool.
    """
    found = {
        (bits, side): roc_auc_score(adversarial, lengths[:, [column, len(BITS) + other]].max(1))
        for column, bits in enumerate(BITS)
        for other, side in enumerate(SIDES)
    }
    return max(found, key=lambda key: found[key])
