"""Scores of a structure's own detector and of two known ones, on clean, attacked and benignly changed images, and under
an attack that aims at classifier and detector together.

There is one row for each version of an image. All the report's numbers on detectors are computed from these rows, but
for those on the mixture.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sparring import progress, store
from sparring.device import channels_last, choose
from sparring.evaluation import corruptions, predict
from sparring.evaluation.adaptive import aimed_rows, detector_score, image_rows
from sparring.layout import HERE, Layout, replacing
from sparring.models import classifier, model_files, networks
from sparring.models.classifier import Classifier
from sparring.models.detector import TransformerDetector
from sparring.params import Params
from sparring.params.names import CLEAN, EVALUATED_SPLITS

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

BENIGN, MILD = ("blur", "brightness", "jpeg"), 2  # corruptions that a detector should let pass, and their strength


def detect(params: Params, name: str, layout: Layout = HERE) -> None:
    """Write the scores of the detector of `structures.<name>` and of two known ones.

    Scored are all test and held-out images, clean, attacked and benignly changed, and the clean validation images.
    `detection.images` images of each split are also attacked anew, through classifier and detector. A structure
    without a detector gets a file without rows. Raises InputError for a structure that is not in params.yaml.
    """
    structure = params.structure(name)
    device = choose(params)
    with progress.timed(layout, f"detect@{name}", device) as done:
        if structure.detector == "none":
            _write(layout.detection(name), pd.DataFrame(), {})
            done(0, "it has no detector")
            return
        # Imported here, as it takes two seconds, which only a structure with a detector should pay.
        from sparring.evaluation.known_detectors import fit_known_detectors

        clean = {
            split: store.read(layout.clean / f"{split}.parquet") for split in ("train", "validation", *EVALUATED_SPLITS)
        }
        classes = clean["train"].metadata["classes"]
        pretrained = networks.load(params.network, classes, params.data.image_size, layout.pretrained)
        source = model_files.digest(pretrained)
        channels_last(pretrained, device)
        models = []
        for seed in params.seeds:
            net, detector = predict.load_models(params, layout, name, seed, pretrained, classes, device)
            assert detector is not None  # as params.structures says
            models.append((seed, net, detector))
        known_scores, facts = fit_known_detectors(params, layout, pretrained, source, clean, device)
        size = params.store.batch_size
        parts = []
        evaluated = len(params.attacks) + len(params.unseen_attacks) + len(BENIGN)
        count = len(clean["validation"]) + sum(len(clean[split]) for split in EVALUATED_SPLITS) * (1 + evaluated)
        count += len(models) * sum(min(len(clean[split]), params.detection.images) for split in EVALUATED_SPLITS)
        with progress.bar(f"detect@{name}", count) as advance:
            for split, kind, attack, images in _versions(params, layout, source, clean):
                their_scores = known_scores(images.image)
                for seed, _, detector in models:
                    score = _scores(pretrained, detector, images.image, size, device)
                    score_rows = image_rows(images, split, seed, kind, attack).assign(detector=score, **their_scores)
                    parts.append(score_rows)
                advance(len(images))
            for seed, net, detector in models:
                for split in EVALUATED_SPLITS:
                    parts += aimed_rows(params, split, clean[split], seed, net, pretrained, detector, device)
                    advance(min(len(clean[split]), params.detection.images))
        rows = pd.concat(parts, ignore_index=True)
        _write(layout.detection(name), rows, facts)
        done(count, f"{len(rows):,} images scored")


def _write(path: Path, rows: pd.DataFrame, facts: dict[str, Any]) -> None:
    table = pa.Table.from_pandas(rows.reindex(columns=SCHEMA.names), SCHEMA, preserve_index=False)
    table = table.replace_schema_metadata({store.METADATA_KEY: json.dumps(facts, sort_keys=True)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def _versions(
    params: Params, layout: Layout, source: str, clean: dict[str, store.Images]
) -> Iterator[tuple[str, str, str, store.Images]]:
    """Yield (split, kind, attack, images) for every version of every split that has images."""
    for split in ("validation", *EVALUATED_SPLITS):
        images = clean[split]
        if not len(images):
            continue
        if split not in EVALUATED_SPLITS:
            yield split, CLEAN, CLEAN, images
            continue
        for _, attack, attacked in predict.versions(params, layout, {split: images}, source):
            yield split, CLEAN if attack == CLEAN else "attack", attack, attacked
        for change in BENIGN:
            changed = corruptions.corrupt(images, change, MILD, params.seed)
            yield split, "benign", change, store.Images(images.index, images.label, changed)


@torch.no_grad()
def _scores(
    pretrained: Classifier, detector: TransformerDetector, stored: np.ndarray, size: int, device: torch.device
) -> np.ndarray:
    parts = [
        detector_score(pretrained.eval(), detector, classifier.to_images(stored[start : start + size], device))
        for start in range(0, len(stored), size)
    ]
    return torch.cat(parts).cpu().numpy()
