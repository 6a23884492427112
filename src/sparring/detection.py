"""Detectors, scored: the structure's own and two known ones on the same net and images, on clean, attacked and benignly
changed images; and an attack that aims at classifier and detector together.

One row an image and version of it. Every figure on detectors but those of the mixture is made of these rows.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.ndimage import median_filter
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from sparring import corruptions, evaluation, files, networks, progress, store
from sparring.attacks import losses
from sparring.attacks.engine import run
from sparring.attacks.pgd import pgd
from sparring.detector import TransformerDetector
from sparring.device import channels_last, choose, rng
from sparring.networks import Classifier
from sparring.params import CLEAN, EVALUATED_SPLITS, InputError, Params

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("kind", pa.string()),  # clean | attack | benign | aimed
        ("attack", pa.string()),  # clean; an attack; a benign change; none, unaware or adaptive
        ("label", pa.int64()),
        ("prediction", pa.int64()),  # of the structure; kind aimed only
        ("detector", pa.float32()),
        ("mahalanobis", pa.float32()),  # not of kind aimed, as is squeezing
        ("squeezing", pa.float32()),
    ]
)
BITS, SIDES = range(1, 8), (2, 3)
RUNS = (0.0, 0.5)  # of the adaptive attack: the weight of the score as long as an image is classified right

BENIGN, MILD = ("blur", "brightness", "jpeg"), 2  # corruptions that a detector should let pass, and their strength

Squeeze = Callable[[np.ndarray], np.ndarray]


def detect(params: Params, name: str) -> None:
    """Score all test and held-out images, clean, attacked and benignly changed, and the clean validation images, with
    the detector of `structures.<name>` and two known ones; and attack `detection.images` of each split anew, aiming at
    classifier and detector. A structure without a detector gets a file without rows."""
    if name not in params.structures:
        raise InputError(f"params.yaml: structures.{name} is missing; there are {', '.join(params.structures)}")
    device = choose(params)
    with progress.timed(f"detect@{name}", device) as done:
        if params.structures[name].detector == "none":
            _write(name, pd.DataFrame(), {})
            done(0, "it has no detector")
            return
        clean = {
            split: store.read(files.CLEAN / f"{split}.parquet") for split in ("train", "validation", *EVALUATED_SPLITS)
        }
        classes = clean["train"].metadata["classes"]
        pretrained = networks.load(params.network, classes, params.data.image_size, files.PRETRAINED)
        source = networks.digest(pretrained)
        channels_last(pretrained, device)
        models = []
        for seed in params.seeds:
            net, detector = evaluation.models(params, name, seed, pretrained, classes, device)
            assert detector is not None  # as params.structures says
            models.append((seed, net, detector))
        known, facts = _known_detectors(params, pretrained, source, clean, device)
        size = params.store.batch_size
        parts = []
        evaluated = len(params.attacks) + len(params.unseen_attacks) + len(BENIGN)
        count = len(clean["validation"]) + sum(len(clean[split]) for split in EVALUATED_SPLITS) * (1 + evaluated)
        count += len(models) * sum(min(len(clean[split]), params.detection.images) for split in EVALUATED_SPLITS)
        with progress.bar(f"detect@{name}", count) as advance:
            for split, kind, attack, images in _versions(params, source, clean):
                others = known(images.image)
                for seed, _, detector in models:
                    score = _scores(pretrained, detector, images.image, size, device)
                    row = _rows(images, split, seed, kind, attack).assign(detector=score, **others)
                    parts.append(row)
                advance(len(images))
            for seed, net, detector in models:
                for split in EVALUATED_SPLITS:
                    parts += _aimed(params, split, clean[split], seed, net, pretrained, detector, device)
                    advance(min(len(clean[split]), params.detection.images))
        rows = pd.concat(parts, ignore_index=True)
        _write(name, rows, facts)
        done(count, f"{len(rows):,} images scored")


def _write(name: str, rows: pd.DataFrame, facts: dict[str, Any]) -> None:
    table = pa.Table.from_pandas(rows.reindex(columns=SCHEMA.names), SCHEMA, preserve_index=False)
    table = table.replace_schema_metadata({store.METADATA_KEY: json.dumps(facts, sort_keys=True)})
    with files.replacing(files.DETECTION / f"{name}.parquet") as path:
        pq.write_table(table, path)


def _rows(images: store.Images, split: str, seed: int, kind: str, attack: str) -> pd.DataFrame:
    rows = pd.DataFrame({"index": images.index, "label": images.label})
    return rows.assign(split=split, seed=seed, kind=kind, attack=attack)


def _versions(
    params: Params, source: str, clean: dict[str, store.Images]
) -> Iterator[tuple[str, str, str, store.Images]]:
    """(split, kind, attack, images) for all that there are images of."""
    for split in ("validation", *EVALUATED_SPLITS):
        images = clean[split]
        if not len(images):
            continue
        evaluated = split in EVALUATED_SPLITS
        folders = evaluation.stored_folders(params) if evaluated else {}
        for _, attack, shown in evaluation.versions({split: images}, folders, source):
            yield split, CLEAN if attack == CLEAN else "attack", attack, shown
        for change in BENIGN if evaluated else ():
            changed = corruptions.corrupt(images, change, MILD, params.seed)
            yield split, "benign", change, store.Images(images.index, images.label, changed)


def _attacked(path: Any, clean: store.Images, source: str) -> store.Images:
    images = store.read(path, ("image", "linf"))
    store.check_rows(clean, images, path)
    store.check_source(images, source, path)
    return images


# The known detectors


def _known_detectors(
    params: Params, pretrained: Classifier, source: str, clean: dict[str, store.Images], device: torch.device
) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], dict[str, Any]]:
    """Both, as functions from images to their scores by name, and what was chosen.

    The Gaussians are fitted on clean training images. The logistic regression and the choice of squeezers see the
    validation images, clean and as every seen attack changed them, as the net treats images that it was trained on
    otherwise than new ones. Without validation images, a tenth of the training images takes their place.
    """
    size = params.store.batch_size
    net = channels_last(networks.frozen(pretrained), device)  # scores are no predictions: folded, it is faster
    split = "validation" if len(clean["validation"]) else "train"
    pool, rest = clean[split], clean["train"]
    fitted = np.arange(len(pool))
    if split == "train":
        order = rng(params.seed, "detection", "fit").permutation(len(pool))
        fitted, others = np.split(order, [-(-len(pool) // 10)])
        rest = pool[others]
    shown = [pool.image[fitted]]
    for attack in params.attacks:
        found = _attacked(files.ADVERSARIAL / attack / f"{split}.parquet", pool, source)[fitted]
        changed = found.columns["linf"] > 0
        if changed.any():
            shown.append(found.image[changed])
    adversarial = np.repeat([False, True], [len(fitted), sum(map(len, shown[1:]))])
    if not adversarial.any():
        raise InputError(
            f"params.yaml: data.{split} is {len(pool)}; no attack changed any of the {len(fitted)} images that "
            "known detectors are fitted on; use more"
        )
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

    return scores, {"bits": bits, "median": side, "fit": len(fitted), "split": split, "gaussians": len(rest)}


@torch.no_grad()
def features(
    net: Classifier, stored: np.ndarray, size: int, device: torch.device
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Of images (N, H, W, C) as stored, N above 0: the net's softmax (N, classes), and the means over positions of its
    maps, (N, channels) each."""
    softmax: list[np.ndarray] = []
    means: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(stored), size):
        maps = net.eval().maps(networks.to_images(stored[start : start + size], device))
        softmax.append(net.classify(maps).softmax(1).cpu().numpy())
        for name in networks.layers(maps):
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
        after = [networks.predict(net, squeeze(batch), size, device) for squeeze in squeezers]
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


# The detector, and who aims at it


def detector_score(pretrained: Classifier, detector: TransformerDetector, images: Tensor) -> Tensor:
    """How much likelier than clean the detector takes images (N, 3, H, W) to be adversarial: (N,), in logits, which
    unlike probabilities do not run into 1."""
    logits = detector(pretrained.maps(images, last=detector.last_map))
    return logits[:, 1] - logits[:, 0]


@torch.no_grad()
def _scores(
    pretrained: Classifier, detector: TransformerDetector, stored: np.ndarray, size: int, device: torch.device
) -> np.ndarray:
    parts = [
        detector_score(pretrained.eval(), detector, networks.to_images(stored[start : start + size], device))
        for start in range(0, len(stored), size)
    ]
    return torch.cat(parts).cpu().numpy()


def adaptive(
    net: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    score: Callable[[Tensor], Tensor],
    eps: float,
    steps: int,
    starts: Tensor,
) -> Tensor:
    """PGD in L∞ on a classifier and its detector together, in two runs from random starts.

    A step follows the sign of a weighted sum of two gradients, each brought to length 1, so that no detector's scale
    decides: up the cross-entropy (by losses.log_odds) and down the score. An image that is classified wrongly follows
    the score's and half of the other; until then it follows the cross-entropy's, alone in the first run (as in
    selective PGD: Bryniarski et al., 2021, arXiv 2106.15023), with half of the score's in the second.

    net: images (N, 3, H, W) in [0, 1] → logits.  score: images → (N,), higher for adversarial.  eps: largest change of
    a pixel, same unit.  starts: (N, 2, 3, H, W), standard normal.
    Returns for each image the one with the lowest score among all wrongly classified ones on the way, the clean image
    included, which is the best against every threshold; where there is none, the last.
    """
    with torch.no_grad():
        wrong = net(images).argmax(1) != labels
        lowest = torch.where(wrong, score(images), torch.inf)
    best = last = images
    for number, weight in enumerate(RUNS):
        last = (images + eps * torch.erf(starts[:, number] / 2**0.5)).clamp(0, 1)
        for left in range(steps, -1, -1):
            last = last.detach().requires_grad_(left > 0)
            with torch.set_grad_enabled(left > 0):
                logits, found = net(last), score(last)
            wrong = logits.argmax(1) != labels
            better = wrong & (found.detach() < lowest)
            lowest = torch.where(better, found.detach(), lowest)
            best = torch.where(_each(better), last.detach(), best)
            if left:
                up = _unit(losses.log_odds(logits, labels), last)
                down = -_unit(found, last)
                way = torch.where(_each(wrong), down + up / 2, up + weight * down).sign()
                change = (last.detach() + step_length(eps, steps) * way - images).clamp(-eps, eps)
                last = (images + change).clamp(0, 1)
    return torch.where(_each(lowest.isinf()), last.detach(), best)


def step_length(eps: float, steps: int) -> float:
    """PGD's steps, together two and a half times the radius: any point of the ball can be reached from any start."""
    return 2.5 * eps / steps


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _unit(values: Tensor, images: Tensor) -> Tensor:
    """The gradient (N, 3, H, W) of each image's own value, values (N,), of L2 length 1 (or 0)."""
    return losses.unit(torch.autograd.grad(values.sum(), images)[0])


def _aimed(
    params: Params,
    split: str,
    clean: store.Images,
    seed: int,
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector,
    device: torch.device,
) -> Iterator[pd.DataFrame]:
    """Rows of kind aimed for a draw of `detection.images` images of a split: unchanged, under an attacker who sees the
    classifier alone, and under one who sees both. Nothing is rounded to 8 bits."""
    settings, size = params.detection, params.store.batch_size
    drawn = rng(params.seed, "detection", split).permutation(len(clean))[: settings.images]
    clean = clean[np.sort(drawn)]
    detector.requires_grad_(False)
    fast, helper = (channels_last(networks.frozen(found), device) for found in (net, pretrained))
    score = partial(detector_score, helper, detector)
    reach: dict[str, Any] = {"eps": settings.eps, "steps": settings.steps}
    attacks: dict[str, Callable[..., Tensor]] = {
        "unaware": partial(
            pgd, step=step_length(settings.eps, settings.steps), norm="linf", restarts=1, loss="cross_entropy", **reach
        ),
        "adaptive": partial(adaptive, score=score, **reach),
    }
    for start in range(0, len(clean), size):
        batch = clean[start : start + size]
        images = networks.to_images(batch.image, device)
        labels = torch.from_numpy(batch.label).to(device)
        shape = (len(RUNS), *images.shape[1:])
        drawn = np.stack([rng(params.seed, "aimed", index).standard_normal(shape, np.float32) for index in batch.index])
        starts = torch.from_numpy(drawn).to(device)
        shown = {"none": images}
        shown |= {name: run(attack, fast, images, labels, {"starts": starts}) for name, attack in attacks.items()}
        for attack, attacked in shown.items():
            with torch.no_grad():
                prediction = net.eval()(attacked).argmax(1).cpu().numpy()
                found = detector_score(pretrained.eval(), detector, attacked).cpu().numpy()
            yield _rows(batch, split, seed, "aimed", attack).assign(prediction=prediction, detector=found)
