"""Predictions of structures on stored images, one row per image. The report's tables are made from these rows alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sparring import progress, store
from sparring.data.transforms import RandomTransform
from sparring.device import channels_last, choose
from sparring.layout import HERE, Layout, replacing
from sparring.models import classifier, model_files, networks
from sparring.models.averaged import Averaged
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params import Params
from sparring.params.errors import InputError
from sparring.params.names import CLEAN, EVALUATED_SPLITS


def evaluate(params: Params, structure: str, layout: Layout = HERE) -> None:
    """Predict all clean and attacked test and held-out images with one structure. Raises InputError for one that is not
    in params.yaml."""
    params.structure(structure)
    device = choose(params)
    with progress.timed(layout, f"evaluate@{structure}", device) as done:
        clean = {split: store.read(layout.clean / f"{split}.parquet") for split in EVALUATED_SPLITS}
        classes = clean["test"].metadata["classes"]
        pretrained = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        source = model_files.digest(pretrained)
        channels_last(pretrained, device)
        seeds = params.seeds_of(structure)
        parts = []
        count = sum(map(len, clean.values())) * (1 + len(params.all_attacks)) * len(seeds)
        with progress.bar(f"evaluate@{structure}", count) as advance:
            for seed in seeds:
                net, detector = load_models(params, layout, structure, seed, pretrained, classes, device)
                for split, attack, images in versions(params, layout, clean, source):
                    rows = classified_and_scored(params, net, pretrained, detector, images, device)
                    parts.append(rows.assign(split=split, attack=attack, seed=seed))
                    advance(len(images))
        rows = pd.concat(parts, ignore_index=True)
        columns = ["index", "split", "seed", "attack", "label", "prediction", "confidence", "detector_score"]
        with replacing(layout.predictions(structure)) as path:
            rows[columns].to_parquet(path, index=False)
        done(len(rows), f"{len(rows):,} predictions")


def trained(
    params: Params, layout: Layout, structure: str, seed: int, classes: int | Sequence[str], device: torch.device
) -> Classifier:
    """Load a structure's net of one seed, on the device. It predicts through its transform where that has `draws`."""
    path = layout.model(structure, seed)
    net = networks.load(params.network, classes, params.data.image_size, path)
    channels_last(net, device)
    transform = transform_of(params, structure, path)
    if transform is None or not transform.settings.draws:
        return net
    return Averaged(net, transform, transform.settings.draws, params.seed)


def transform_of(params: Params, structure: str, path: Path) -> RandomTransform | None:
    """Return the transform with which a structure's net, in the file at `path`, was trained; None where it has none.

    Raises InputError where it has one, but the net was trained without.
    """
    mean: Any = model_files.facts(path).get("mean_colour", ())
    transform = RandomTransform.of(params, structure, tuple(mean))
    if transform is not None and len(transform.mean) != 3:
        raise InputError(f"{path} was trained without a transform; run `dvc repro`, which trains it again")
    return transform


def load_models(
    params: Params,
    layout: Layout,
    structure: str,
    seed: int,
    pretrained: Classifier,
    classes: int | Sequence[str],
    device: torch.device,
) -> tuple[Classifier, TransformerDetector | None]:
    """Load what a structure trained with one seed, on the device: its net, and its detector where it has one."""
    net = trained(params, layout, structure, seed, classes, device)
    if params.structures[structure].detector == "none":
        return net, None
    return net, _detector(params, layout, structure, seed, pretrained, device)


def versions(
    params: Params, layout: Layout, clean: dict[str, store.Images], source: str | None
) -> Iterator[tuple[str, str, store.Images]]:
    """Yield (split, attack, images) for every split, clean and under each attack.

    source: the digest of the net that the attacks were made against, or None where any will do. Raises InputError where
    the attacks were made against another net or on other images.
    """
    for split, images in clean.items():
        yield split, CLEAN, images
        for attack in params.all_attacks:
            path = layout.attacked(params, attack) / f"{split}.parquet"
            attacked = store.read(path, ("image",))
            store.check_rows(images, attacked, path)
            if source is not None:
                store.check_source(attacked, source, path)
            yield split, attack, attacked


def _detector(
    params: Params, layout: Layout, structure: str, seed: int, pretrained: Classifier, device: torch.device
) -> TransformerDetector:
    """Load a structure's detector, on `device` and in eval mode. Raises InputError as model_files.load_into does."""
    detector = TransformerDetector(params.detector, classifier.map_shapes(pretrained, params.data.image_size))
    model_files.load_into(detector, layout.detector(structure, seed))
    return detector.to(device).eval()


def classified(net: nn.Module, images: store.Images, size: int, device: torch.device) -> pd.DataFrame:
    """Return one row per image: index, label, prediction, confidence.  size: images in a batch of the net."""
    probabilities = classifier.predict(net, images.image, size, device)
    rows = pd.DataFrame({"index": images.index, "label": images.label})
    rows["prediction"], rows["confidence"] = probabilities.argmax(1), probabilities.max(1)
    return rows


def classified_and_scored(
    params: Params,
    net: Classifier,
    pretrained: Classifier,
    detector: TransformerDetector | None,
    images: store.Images,
    device: torch.device,
) -> pd.DataFrame:
    """Return one row per image: index, label, prediction, confidence, detector_score (NaN without a detector)."""
    size = params.store.batch_size
    rows = classified(net, images, size, device)
    rows["detector_score"] = pd.Series(np.nan, rows.index, dtype="float32")
    if detector is not None:
        rows["detector_score"] = _scores(pretrained, detector, images.image, size, device)
    return rows


@torch.no_grad()
def _scores(
    pretrained: Classifier, detector: TransformerDetector, stored: np.ndarray, size: int, device: torch.device
) -> np.ndarray:
    """Return the detector's probability (N,) that an image is adversarial, from the pretrained net's maps of it."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(stored), size):
        maps = pretrained.eval().maps(
            classifier.to_images(stored[start : start + size], device), last=detector.last_map
        )
        parts.append(detector(maps).softmax(1)[:, 1].cpu().numpy())
    return np.concatenate(parts)
